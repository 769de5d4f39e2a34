//! What is given away of the host: processors, memory, addresses.
//!
//! Invariant: nothing is given twice. A claim is made before the record that needs it is written, and given
//! back where the record could not be written or needs it no more. Claims are in memory only: they follow
//! from the records, and are made again from them at start.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ec2vmm_host::host::Capacity;
use ec2vmm_model::{Instance, InstanceType, ids::InstanceId, lifecycle::State, networks::Network};

#[derive(Clone)]
pub(crate) struct Admission(Arc<Mutex<Given>>);

struct Given {
    limit: Size,
    total: Size,
    /// By instance and the generation that the claim was made for: a start begins to claim before the
    /// stop that came before it has given back.
    claims: HashMap<InstanceId, BTreeMap<u64, Size>>,
    addresses: BTreeMap<Ipv4Addr, InstanceId>,
    first: u32,
    last: u32,
    /// Where the search for a free address goes on: an address is not given again at once.
    next: u32,
}

/// Processors and memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Size {
    pub(crate) vcpus: u64,
    pub(crate) memory_mib: u64,
}

impl From<&InstanceType> for Size {
    fn from(kind: &InstanceType) -> Self {
        Self { vcpus: u64::from(kind.vcpus), memory_mib: kind.memory_mib }
    }
}

/// Claims that are given back when this is dropped, unless they were kept.
pub(crate) struct Claims {
    admission: Admission,
    machines: Vec<(InstanceId, u64)>,
    addresses: Vec<(Ipv4Addr, InstanceId)>,
}

/// There is not enough.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Lacking {
    pub(crate) free: Size,
}

impl Admission {
    pub(crate) fn new(
        capacity: Capacity,
        cpu_overcommit: f64,
        memory_overcommit: f64,
        network: &Network,
    ) -> Self {
        let base = u32::from(network.base);
        let size = 1_u32 << 32_u32.saturating_sub(u32::from(network.prefix)).min(31);
        let limit = Size {
            vcpus: times(u64::from(capacity.cpus), cpu_overcommit),
            memory_mib: times(capacity.memory_mib, memory_overcommit),
        };
        // EC2 keeps the first four and the last one of a range.
        let first = base.saturating_add(4);
        let last = base.saturating_add(size.saturating_sub(2));
        Self(Arc::new(Mutex::new(Given {
            limit,
            total: Size::default(),
            claims: HashMap::new(),
            addresses: BTreeMap::new(),
            first,
            last,
            next: first,
        })))
    }

    pub(crate) fn claims(&self) -> Claims {
        Claims { admission: self.clone(), machines: Vec::new(), addresses: Vec::new() }
    }

    /// Takes in what a record says now that it is written.
    pub(crate) fn follow(&self, instance: &Instance, size: Size) {
        let mut given = self.given();
        if instance.state.occupies_host() {
            if !given.claims.contains_key(&instance.id) {
                given.claim(&instance.id, instance.generation, size);
            }
        } else {
            given.give_back(&instance.id, |generation| generation <= instance.generation);
        }
        if instance.state == State::Terminated {
            if given.addresses.get(&instance.interface.address) == Some(&instance.id) {
                given.addresses.remove(&instance.interface.address);
            }
        } else {
            given.addresses.insert(instance.interface.address, instance.id.clone());
        }
    }

    /// What is given, and what there is to give.
    pub(crate) fn figures(&self) -> (Size, Size) {
        let given = self.given();
        (given.total, given.limit)
    }

    pub(crate) fn owner_of(&self, address: Ipv4Addr) -> Option<InstanceId> {
        self.given().addresses.get(&address).cloned()
    }

    pub(crate) fn is_in_range(&self, address: Ipv4Addr) -> bool {
        let given = self.given();
        (given.first..=given.last).contains(&u32::from(address))
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claims {
    /// Claims a machine. Claiming again is no further claim.
    pub(crate) fn machine(
        &mut self,
        instance: &InstanceId,
        generation: u64,
        size: Size,
    ) -> Result<(), Lacking> {
        if self.machines.iter().any(|(id, claimed)| id == instance && *claimed == generation) {
            return Ok(());
        }
        let mut given = self.admission.given();
        let free = given.free();
        if size.vcpus > free.vcpus || size.memory_mib > free.memory_mib {
            return Err(Lacking { free });
        }
        given.claim(instance, generation, size);
        drop(given);
        self.machines.push((instance.clone(), generation));
        Ok(())
    }

    /// Claims this address, or some free one.
    pub(crate) fn address(&mut self, instance: &InstanceId, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let mut given = self.admission.given();
        let address = match wanted {
            Some(wanted) => Some(wanted).filter(|it| !given.addresses.contains_key(it)),
            None => given.free_address(),
        }?;
        given.addresses.insert(address, instance.clone());
        drop(given);
        self.addresses.push((address, instance.clone()));
        Some(address)
    }

    /// Gives back what was claimed for one instance.
    pub(crate) fn give_back(&mut self, instance: &InstanceId) {
        let mut given = self.admission.given();
        self.machines.retain(|(id, generation)| {
            let goes = id == instance;
            if goes {
                given.give_back(id, |claimed| claimed == *generation);
            }
            !goes
        });
        self.addresses.retain(|(address, id)| {
            let goes = id == instance;
            if goes {
                given.addresses.remove(address);
            }
            !goes
        });
    }

    /// The records are written.
    pub(crate) fn keep(&mut self) {
        self.machines.clear();
        self.addresses.clear();
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        let mut given = self.admission.given();
        for (id, generation) in &self.machines {
            given.give_back(id, |claimed| claimed == *generation);
        }
        for (address, _) in &self.addresses {
            given.addresses.remove(address);
        }
    }
}

impl Given {
    fn free(&self) -> Size {
        Size {
            vcpus: self.limit.vcpus.saturating_sub(self.total.vcpus),
            memory_mib: self.limit.memory_mib.saturating_sub(self.total.memory_mib),
        }
    }

    fn claim(&mut self, instance: &InstanceId, generation: u64, size: Size) {
        self.total.vcpus += size.vcpus;
        self.total.memory_mib += size.memory_mib;
        let before = self.claims.entry(instance.clone()).or_default().insert(generation, size);
        self.subtract(before);
    }

    fn give_back(&mut self, instance: &InstanceId, which: impl Fn(u64) -> bool) {
        let Some(claims) = self.claims.get_mut(instance) else { return };
        let mut gone = Vec::new();
        claims.retain(|generation, size| {
            let goes = which(*generation);
            gone.extend(goes.then_some(*size));
            !goes
        });
        if claims.is_empty() {
            self.claims.remove(instance);
        }
        gone.into_iter().for_each(|size| self.subtract(Some(size)));
    }

    fn subtract(&mut self, size: Option<Size>) {
        let size = size.unwrap_or_default();
        self.total.vcpus = self.total.vcpus.saturating_sub(size.vcpus);
        self.total.memory_mib = self.total.memory_mib.saturating_sub(size.memory_mib);
    }

    fn free_address(&mut self) -> Option<Ipv4Addr> {
        if self.last < self.first || self.addresses.len() > usize::try_from(self.last - self.first).ok()? {
            return None;
        }
        for _ in self.first..=self.last {
            let candidate = Ipv4Addr::from(self.next);
            self.next = if self.next >= self.last { self.first } else { self.next + 1 };
            if !self.addresses.contains_key(&candidate) {
                return Some(candidate);
            }
        }
        None
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and a factor is no exact thing"
)]
fn times(amount: u64, factor: f64) -> u64 {
    (amount as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use ec2vmm_model::ids::{SubnetId, VpcId};

    use super::*;

    fn admission(prefix: u8) -> Admission {
        let network = Network {
            vpc: VpcId::from_random(1),
            subnet: SubnetId::from_random(1),
            base: Ipv4Addr::new(172, 31, 0, 0),
            prefix,
        };
        Admission::new(Capacity { cpus: 2, memory_mib: 4096 }, 2.0, 1.0, &network)
    }

    fn id(number: u128) -> InstanceId {
        InstanceId::from_random(number)
    }

    #[test]
    fn what_is_not_kept_is_given_back() {
        let admission = admission(16);
        let size = Size { vcpus: 2, memory_mib: 2048 };
        let mut first = admission.claims();
        first.machine(&id(1), 1, size).unwrap();
        first.machine(&id(1), 1, size).unwrap();
        first.keep();
        let mut second = admission.claims();
        second.machine(&id(2), 1, size).unwrap();
        let free = Size::default();
        assert_eq!(second.machine(&id(3), 1, Size { vcpus: 1, memory_mib: 1 }), Err(Lacking { free }));
        drop(second);
        assert_eq!(admission.figures().0, size);
    }

    #[test]
    fn a_small_network_is_used_up() {
        let admission = admission(28);
        let mut claims = admission.claims();
        let given: Vec<_> = (0..20).map_while(|number| claims.address(&id(number), None)).collect();
        // 16 less the five that are kept.
        assert_eq!(given.len(), 11);
        assert_eq!(
            (given[0].to_string(), given[10].to_string()),
            ("172.31.0.4".into(), "172.31.0.14".into())
        );
        claims.give_back(&id(3));
        assert_eq!(claims.address(&id(30), None), Some(given[3]));
        assert_eq!(claims.address(&id(31), Some(given[3])), None);
    }
}
