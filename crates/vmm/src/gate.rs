//! Where vCPU threads wait while their machine is paused.
//!
//! ```text
//!   inside (in the guest, or serving its exit) ──Pause──► parked ──Run──► inside
//!                     └────────────────────── Stop ─────────┴──► gone
//! ```
//!
//! A thread comes here between two instructions of its guest only, with nothing of an exit left to be done.
//! It comes when it is kicked; on its way through guest and exits it takes no lock.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The gate of all vCPUs of one run of a machine.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    order: Order,
    /// Threads that are not parked, nor gone.
    inside: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Order {
    Run,
    Pause,
    Stop,
}

/// How a thread has come through the gate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Passed {
    /// At once.
    Through,
    /// After it was parked.
    Parked,
    /// Not at all: it is to end.
    Stopped,
}

impl Gate {
    /// An open one.
    pub fn new() -> Self {
        Self { inner: Mutex::new(Inner { order: Order::Run, inside: 0 }), changed: Condvar::new() }
    }

    /// A thread counts as inside from now on, until the pass is dropped.
    pub fn enter(self: &Arc<Self>) -> Pass {
        self.lock().inside += 1;
        Pass { gate: Arc::clone(self) }
    }

    /// Orders a pause; `kick` then makes every thread come to the gate. Waits until all are parked or gone.
    pub fn pause(&self, kick: impl FnOnce()) {
        let mut inner = self.lock();
        if inner.order == Order::Run {
            inner.order = Order::Pause;
        }
        kick();
        while inner.inside > 0 {
            inner = self.wait(inner);
        }
    }

    /// Lets parked threads go on.
    pub fn resume(&self) {
        let mut inner = self.lock();
        if inner.order == Order::Pause {
            inner.order = Order::Run;
            self.changed.notify_all();
        }
    }

    /// Orders the end, for good; `kick` then makes every thread come to the gate.
    pub fn stop(&self, kick: impl FnOnce()) {
        self.lock().order = Order::Stop;
        self.changed.notify_all();
        kick();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// A thread that is inside.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
}

impl Pass {
    /// Comes to the gate, and is parked there while the machine is paused. `unkick` undoes the kick that has
    /// brought the thread here, and so that no later one is undone with it, it must not block.
    pub fn come(&self, unkick: impl FnOnce()) -> Passed {
        let gate = &*self.gate;
        let mut inner = gate.lock();
        let mut passed = Passed::Through;
        if inner.order == Order::Pause {
            passed = Passed::Parked;
            inner.inside -= 1;
            gate.changed.notify_all();
            while inner.order == Order::Pause {
                inner = gate.wait(inner);
            }
            inner.inside += 1;
        }
        if inner.order == Order::Stop {
            return Passed::Stopped;
        }
        unkick();
        passed
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.lock().inside -= 1;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        thread,
    };

    use super::{Gate, Passed};

    /// A thread that counts until it is kicked, and then comes to the gate.
    struct Worker {
        kicked: AtomicBool,
        count: AtomicU64,
    }

    fn work(worker: &Worker, gate: &Arc<Gate>) -> u64 {
        let pass = gate.enter();
        let mut parked = 0;
        loop {
            worker.count.fetch_add(1, Ordering::Relaxed);
            if worker.kicked.load(Ordering::Acquire) {
                match pass.come(|| worker.kicked.store(false, Ordering::Release)) {
                    Passed::Through => {}
                    Passed::Parked => parked += 1,
                    Passed::Stopped => return parked,
                }
            }
        }
    }

    fn counts(workers: &[Worker]) -> Vec<u64> {
        workers.iter().map(|worker| worker.count.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn nothing_moves_while_it_is_paused_however_often_that_is() {
        let workers: Vec<_> =
            (0..3).map(|_| Worker { kicked: AtomicBool::new(false), count: AtomicU64::new(0) }).collect();
        let gate = Arc::new(Gate::new());
        let kick = || workers.iter().for_each(|worker| worker.kicked.store(true, Ordering::Release));
        thread::scope(|scope| {
            let threads: Vec<_> = workers.iter().map(|worker| scope.spawn(|| work(worker, &gate))).collect();
            while counts(&workers).contains(&0) {
                thread::yield_now();
            }
            for _ in 0..200 {
                gate.pause(kick);
                let before = counts(&workers);
                gate.pause(kick);
                thread::yield_now();
                assert_eq!(counts(&workers), before);
                gate.resume();
            }
            gate.pause(kick);
            let before = counts(&workers);
            gate.resume();
            while counts(&workers).iter().zip(&before).any(|(now, before)| now == before) {
                thread::yield_now();
            }
            gate.pause(kick);
            gate.stop(kick);
            for thread in threads {
                assert!(thread.join().unwrap() > 0);
            }
        });
    }

    #[test]
    fn one_who_has_gone_is_not_waited_for() {
        let gate = Arc::new(Gate::new());
        drop(gate.enter());
        gate.pause(|| {});
        gate.stop(|| {});
        assert_eq!(gate.enter().come(|| {}), Passed::Stopped);
        gate.resume();
        assert_eq!(gate.enter().come(|| {}), Passed::Stopped, "the end is for good");
    }
}
