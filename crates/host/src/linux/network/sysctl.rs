//! The kernel's settings for one network namespace: what is under `/proc/sys/net` depends on who looks.

use std::{io, path::Path};

use super::{Error, changed, namespace::Namespace};

/// A setting below `/proc/sys/net`, and its value.
pub(super) type Setting = (String, &'static str);

/// Sets what is not so already, in the calling thread's namespace.
pub(super) fn set(settings: &[Setting]) -> Result<(), Error> {
    for (name, value) in settings {
        let path = Path::new("/proc/sys/net").join(name);
        let failed = |source| Error::File { what: "set", path: path.clone(), source };
        match std::fs::read_to_string(&path) {
            Ok(now) if now.trim() == *value => continue,
            Ok(_) => {}
            // A kernel without IPv6 needs none of it switched off.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6/") => continue,
            Err(error) => return Err(failed(error)),
        }
        std::fs::write(&path, value).map_err(failed)?;
        changed(format_args!("{name} set to {value}"));
    }
    Ok(())
}

/// The same in another namespace.
pub(super) async fn set_in(namespace: &Namespace, settings: Vec<Setting>) -> Result<(), Error> {
    namespace.enter(move || set(&settings)).await?
}

/// For a network's namespace as a whole: it routes, says nothing about better ways, and speaks no IPv6.
pub(super) fn of_namespace() -> Vec<Setting> {
    let mut settings = vec![("ipv4/ip_forward".into(), "1"), ("ipv4/conf/all/rp_filter".into(), "0")];
    for of in ["all", "default"] {
        settings.extend([
            (format!("ipv4/conf/{of}/accept_redirects"), "0"),
            (format!("ipv4/conf/{of}/send_redirects"), "0"),
            (format!("ipv4/conf/{of}/accept_source_route"), "0"),
            (format!("ipv6/conf/{of}/disable_ipv6"), "1"),
        ]);
    }
    settings
}

/// For a tap: it answers ARP for everyone and at once, and believes a source only where it would send to.
pub(super) fn of_tap(tap: &str) -> Vec<Setting> {
    vec![
        (format!("ipv4/conf/{tap}/proxy_arp"), "1"),
        (format!("ipv4/neigh/{tap}/proxy_delay"), "0"),
        (format!("ipv4/conf/{tap}/rp_filter"), "1"),
        (format!("ipv4/conf/{tap}/accept_redirects"), "0"),
        (format!("ipv4/conf/{tap}/send_redirects"), "0"),
        (format!("ipv6/conf/{tap}/disable_ipv6"), "1"),
    ]
}

/// For either end of the cable between host and network.
pub(super) fn of_cable(cable: &str) -> Vec<Setting> {
    vec![
        (format!("ipv4/conf/{cable}/accept_redirects"), "0"),
        (format!("ipv4/conf/{cable}/send_redirects"), "0"),
        (format!("ipv6/conf/{cable}/disable_ipv6"), "1"),
    ]
}
