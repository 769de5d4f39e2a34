//! Taps as an older daemon has made them.

use super::lab::{alone, config, interface_id, interface_plan, network_plan, run, vpc};
use crate::linux::network::{Error, Network, names};

#[test]
fn a_tap_that_was_made_with_one_queue_goes_on_with_one() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        network.ensure_interface(&interface_plan(10)).await.unwrap();
        let three = network.open_tap(&interface_id(10), 3).await.unwrap();
        assert_eq!(three.len(), 3);
        drop(three);
        drop(network);

        // The same name and alias, but no `multi_queue`: what versions before that had.
        let (tap, alias) = (names::tap(&interface_id(10)), names::tap_alias(&interface_id(10)));
        let ip = format!("ip -n {}", vpc());
        let show = || run(&format!("{ip} -d link show {tap}"));
        assert!(show().contains(" multi_queue "), "{}", show());
        run(&format!("{ip} link delete {tap} && {ip} tuntap add {tap} mode tap vnet_hdr"));
        run(&format!("{ip} link set {tap} alias '{alias}'"));
        assert!(!show().contains(" multi_queue "), "{}", show());

        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        network.ensure_interface(&interface_plan(10)).await.unwrap();
        let one = network.open_tap(&interface_id(10), 3).await.unwrap();
        assert_eq!(one.len(), 1, "it is taken as it is");
        for queues in [1, 3] {
            let error = network.open_tap(&interface_id(10), queues).await.unwrap_err();
            assert!(matches!(error, Error::Busy { .. }), "{error}");
        }
        drop(one);
        assert_eq!(network.open_tap(&interface_id(10), 1).await.unwrap().len(), 1);
        network.remove_interface(&interface_id(10)).await.unwrap();
        network.remove_network(&vpc()).await.unwrap();
    });
}
