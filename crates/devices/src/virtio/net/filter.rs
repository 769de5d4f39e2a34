//! Which frames a driver wants (virtio 1.2 sections 5.1.6.5.1 and 5.1.6.5.2).

/// A hardware address.
pub(super) type Address = [u8; 6];

/// A kind of frames that is switched on or off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    Promiscuous,
    AllMulticast,
    AllUnicast,
    NoMulticast,
    NoUnicast,
    NoBroadcast,
}

/// Addresses that are wanted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Table {
    addresses: Vec<Address>,
    /// There were more than can be kept: then all are wanted.
    overflown: bool,
}

impl Table {
    pub(super) const ADDRESSES_MAX: usize = 64;

    /// More than [`Self::ADDRESSES_MAX`] mean any address.
    pub(super) fn new(addresses: Vec<Address>) -> Self {
        match addresses.len() {
            ..=Self::ADDRESSES_MAX => Self { addresses, overflown: false },
            _ => Self { addresses: Vec::new(), overflown: true },
        }
    }

    fn has(&self, address: &Address) -> bool {
        self.overflown || self.addresses.contains(address)
    }
}

/// What is let through. As a card is born, everything: a driver that knows no filter wants all.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    own: Address,
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Table,
    multicast: Table,
}

impl Filter {
    pub(super) fn new(own: Address) -> Self {
        Self {
            own,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
        }
    }

    pub(super) fn set(&mut self, mode: Mode, on: bool) {
        *match mode {
            Mode::Promiscuous => &mut self.promiscuous,
            Mode::AllMulticast => &mut self.all_multicast,
            Mode::AllUnicast => &mut self.all_unicast,
            Mode::NoMulticast => &mut self.no_multicast,
            Mode::NoUnicast => &mut self.no_unicast,
            Mode::NoBroadcast => &mut self.no_broadcast,
        } = on;
    }

    pub(super) fn set_own(&mut self, own: Address) {
        self.own = own;
    }

    pub(super) fn set_tables(&mut self, unicast: Table, multicast: Table) {
        (self.unicast, self.multicast) = (unicast, multicast);
    }

    /// Whether no frame need be looked at.
    pub(super) fn wants_all(&self) -> bool {
        self.promiscuous
    }

    /// Whether a frame to this address is wanted.
    pub(super) fn wants(&self, to: &Address) -> bool {
        if self.promiscuous {
            return true;
        }
        if *to == BROADCAST {
            return !self.no_broadcast;
        }
        if is_multicast(to) {
            return !self.no_multicast && (self.all_multicast || self.multicast.has(to));
        }
        !self.no_unicast && (self.all_unicast || *to == self.own || self.unicast.has(to))
    }
}

/// Whether it is an address of many.
pub(super) fn is_multicast([first, ..]: &Address) -> bool {
    first & 1 != 0
}

const BROADCAST: Address = [0xff; 6];

#[cfg(test)]
mod tests {
    use super::{Filter, Mode, Table};

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const ALL: [u8; 6] = [0xff; 6];

    /// Which of own, other, group and broadcast get through.
    fn wanted(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, ALL].map(|address| filter.wants(&address))
    }

    #[test]
    fn modes_and_tables() {
        let mut filter = Filter::new(OWN);
        assert_eq!(wanted(&filter), [true; 4]);
        filter.set(Mode::Promiscuous, false);
        for (mode, expected) in [
            (Mode::AllMulticast, [true, false, true, true]),
            (Mode::AllUnicast, [true, true, false, true]),
            (Mode::NoUnicast, [false, false, false, true]),
            (Mode::NoMulticast, [true, false, false, true]),
            (Mode::NoBroadcast, [true, false, false, false]),
        ] {
            assert_eq!(wanted(&filter), [true, false, false, true]);
            filter.set(mode, true);
            assert_eq!(wanted(&filter), expected, "{mode:?}");
            filter.set(mode, false);
        }
        filter.set_tables(Table::new(vec![OTHER]), Table::default());
        assert_eq!(wanted(&filter), [true, true, false, true]);
        filter.set_tables(Table::default(), Table::new(vec![GROUP]));
        assert_eq!(wanted(&filter), [true, false, true, true]);
        filter.set_tables(Table::default(), Table::new(vec![ALL; 65]));
        assert_eq!(wanted(&filter), [true, false, true, true]);
        filter.set_own(OTHER);
        assert_eq!(wanted(&filter), [false, true, true, true]);
    }
}
