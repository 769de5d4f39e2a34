//! What crashes leave, and how it is completed or removed.

use std::os::unix::process::ExitStatusExt;

use super::lab::{
    ALONE, Computer, alone, config, interface_id, interface_plan, network_plan, process_beside, run, shell,
    text, vpc,
};
use crate::linux::{
    killer::{DIE_AFTER, die_after},
    network::{CHANGES, Error, Network},
};

const VICTIM: &str = "linux::network::tests::survival::victim";

/// Makes everything, and removes everything again.
#[test]
#[ignore = "it is killed, by the test below"]
fn victim() {
    let (Some(_), Some(after)) = (std::env::var_os(ALONE), std::env::var_os(DIE_AFTER)) else { return };
    let after = after.to_str().unwrap().parse().unwrap();
    alone(async || {
        die_after(after, CHANGES);
        let network = Network::start(config()).await.unwrap();
        make(&network).await;
        network.remove_interface(&interface_id(10)).await.unwrap();
        network.remove_network(&vpc()).await.unwrap();
    });
}

async fn make(network: &Network) {
    network.ensure_network(&network_plan()).await.unwrap();
    network.ensure_interface(&interface_plan(10)).await.unwrap();
    network.ensure_interface(&interface_plan(11)).await.unwrap();
}

/// Everything about the host's network and the network's namespace that could differ, without the numbers
/// and hardware addresses that the kernel chooses.
fn picture() -> String {
    let look = "ip -o link; ip -4 -o addr; ip -4 route show table all; ip neigh show nud permanent; nft list ruleset; \
        grep -H . $(ls -d /proc/sys/net/ipv4/conf/*/proxy_arp /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/neigh/*/proxy_delay /proc/sys/net/ipv4/ip_forward)";
    let all = format!(
        "({look}); ls /run/netns; if test -e /run/netns/{0}; then ip netns exec {0} sh -c '{look}'; fi",
        vpc()
    );
    let noise = "sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/link\\/ether [0-9a-f:]+/MAC/; s/link-netns(id)? [^ ]+//; s/packets [0-9]+ bytes [0-9]+//'";
    // A link that nobody is at is `linkdown` a moment later.
    text(
        &shell(&format!(
            "({all}) 2>&1 | {noise} | sed 's/ linkdown//; s/state [A-Z]*//; s/<[^>]*>//' | sort"
        ))
        .stdout,
    )
}

#[test]
fn killed_at_every_step_it_is_completed_or_swept() {
    alone(async || {
        // What the first network turns on stays.
        run(
            "sysctl -qw net.ipv4.ip_forward=1; mkdir -p /run/netns; mount --bind /run/netns /run/netns; mount --make-shared /run/netns",
        );
        let empty = picture();
        let network = Network::start(config()).await.unwrap();
        make(&network).await;
        let whole = picture();
        network.remove_network(&vpc()).await.unwrap();
        assert_eq!(picture(), empty);
        drop(network);

        let mut steps = 0;
        loop {
            steps += 1;
            for complete in [true, false] {
                let output = process_beside(VICTIM, DIE_AFTER, &steps.to_string()).output().unwrap();
                if output.status.success() {
                    assert!(text(&output.stdout).contains("1 passed"), "{output:?}");
                    assert!(steps > 40, "only {steps} changes were seen");
                    assert_eq!(picture(), empty);
                    return;
                }
                assert_eq!(output.status.signal(), Some(9), "{output:?}");

                let network = Network::start(config()).await.unwrap();
                if complete {
                    make(&network).await;
                    assert_eq!(picture(), whole, "after {steps} changes");
                    let queues = network.open_tap(&interface_id(10), 3).await.unwrap();
                    assert_eq!(queues.len(), 3);
                }
                sweep(&network).await;
                assert_eq!(picture(), empty, "after {steps} changes, completed: {complete}");
            }
        }
    });
}

async fn sweep(network: &Network) {
    let (vpcs, interfaces) = network.inventory().await.unwrap();
    for interface in interfaces {
        network.remove_interface(&interface).await.unwrap();
    }
    for vpc in vpcs {
        network.remove_network(&vpc).await.unwrap();
    }
    assert_eq!(network.inventory().await.unwrap(), (vec![], vec![]));
}

#[test]
fn machines_go_on_without_a_daemon_and_are_adopted() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        network.ensure_network(&network_plan()).await.unwrap();
        let ten = Computer::plug_configured(&network, 10).await;
        let eleven = Computer::plug_configured(&network, 11).await;
        drop(network);
        ten.run("ping -c1 -W5 172.31.0.11").await;
        run("ping -c1 -W5 172.31.0.10");

        let network = Network::start(config()).await.unwrap();
        let found = network.inventory().await.unwrap();
        assert_eq!(found, (vec![vpc()], vec![interface_id(10), interface_id(11)]));
        make(&network).await;
        ten.run("ping -c1 -W5 172.31.0.11").await;
        let error = network.open_tap(&interface_id(10), 2).await.unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");

        // Pulled from under the machine; the other one does not notice.
        network.remove_interface(&interface_id(10)).await.unwrap();
        assert!(!ten.shell("ping -c1 -W1 172.31.0.11").await.status.success());
        run("ping -c1 -W5 172.31.0.11");
        network.remove_network(&vpc()).await.unwrap();
        assert_eq!(network.inventory().await.unwrap(), (vec![], vec![]));
        drop(eleven);
    });
}

#[test]
fn what_was_taken_away_is_made_again() {
    alone(async || {
        let network = Network::start(config()).await.unwrap();
        make(&network).await;
        let whole = picture();
        for damage in [
            format!("ip link del {}", super::super::names::cable(&vpc())),
            format!("ip netns del {}", vpc()),
            format!("nft delete table ip ec2vmm-{}", vpc()),
            format!("ip netns exec {} nft flush ruleset", vpc()),
            format!("ip -n {} link del eni-0000000010a", vpc()),
            format!("ip route del 172.31.0.0/20; ip -n {} route flush table main", vpc()),
        ] {
            run(&damage);
            assert_ne!(picture(), whole, "{damage}");
            make(&network).await;
            assert_eq!(picture(), whole, "{damage}");
        }
    });
}
