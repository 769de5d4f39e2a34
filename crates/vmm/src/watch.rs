//! Tells of vCPUs that hang.
//!
//! A guest that hangs for good mostly does so with interrupts off: it waits for a lock that nobody gives back,
//! or goes in circles in a handler. Its processor is busy, and no timer ever reaches it. So whoever is busy
//! with interrupts off at every look for [`Watch::new`]'s time is taken to be stuck.
//!
//! * A look costs a vCPU one exit. One that has used next to no processor time since the last round is not
//!   looked at: it is idle, or halted for good, or the host does not let it run, which cannot be told apart.
//!   So an idle machine pays one timer for all.
//! * Busy vCPUs are looked at seldom, and often only while their interrupts are off: no work that is sound
//!   has them off at hundreds of looks in a row.
//! * It does not see a guest that hangs with interrupts on: its own watchdog does. A kernel that needs longer
//!   than that time before it first turns interrupts on is called stuck, and recovers.

use std::time::Duration;

/// What is thought of each vCPU.
#[derive(Debug)]
pub struct Watch {
    after: Duration,
    vcpus: Vec<Thought>,
    /// How often all were gone through.
    rounds: u64,
    last: Duration,
}

#[derive(Clone, Debug, Default)]
struct Thought {
    /// At every look since then, its interrupts were off.
    masked_since: Option<Duration>,
    stuck: bool,
    used: Duration,
}

/// What was seen of a vCPU at a look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    /// It takes interrupts.
    pub interrupts_on: bool,
    /// Where it executes.
    pub rip: u64,
}

/// What is news of a vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum News {
    /// It is stuck.
    Stuck {
        /// Where it executes.
        rip: u64,
    },
    /// It was stuck, and is not any more.
    Recovered,
}

/// What a round has come to for one vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Judgement {
    /// To be told.
    pub news: Option<News>,
    /// It is to be looked at until the next round.
    pub look: bool,
}

impl Watch {
    /// Watches `vcpus` of them, and calls one stuck that is busy with interrupts off for `after`.
    pub fn new(vcpus: usize, after: Duration) -> Self {
        Self { after, vcpus: vec![Thought::default(); vcpus], rounds: 0, last: Duration::ZERO }
    }

    /// Begins a round, at a time `now` that only ever grows.
    pub fn begin(&mut self, now: Duration) -> Round<'_> {
        self.rounds += 1;
        let elapsed = now.saturating_sub(std::mem::replace(&mut self.last, now));
        Round { watch: self, now, elapsed }
    }

    /// How long until the next round.
    pub fn pause(&self) -> Duration {
        let suspects = self.vcpus.iter().any(|vcpu| vcpu.masked_since.is_some() && !vcpu.stuck);
        let seldom = (self.after / 4).min(SELDOM_MAX);
        if suspects { (self.after / 10).min(OFTEN_MAX) } else { seldom }
    }

    /// Rounds since the start.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }
}

/// One time of going through all vCPUs.
#[derive(Debug)]
pub struct Round<'a> {
    watch: &'a mut Watch,
    now: Duration,
    elapsed: Duration,
}

impl Round<'_> {
    /// Judges a vCPU by the processor time that it has used in its life, and by what was seen at the last
    /// look, if it was looked at.
    pub fn judge(&mut self, index: usize, used: Duration, seen: Option<Seen>) -> Judgement {
        let (now, after) = (self.now, self.watch.after);
        let Some(vcpu) = self.watch.vcpus.get_mut(index) else {
            return Judgement { news: None, look: false };
        };
        let used_now = used.saturating_sub(std::mem::replace(&mut vcpu.used, used));
        let busy = used_now >= self.elapsed / BUSY_PART && !used_now.is_zero();
        let masked = seen.filter(|seen| !seen.interrupts_on);
        let news = match (masked, busy) {
            (Some(Seen { rip, .. }), true) => {
                let since = *vcpu.masked_since.get_or_insert(now);
                let is_new = !vcpu.stuck && now.saturating_sub(since) >= after;
                vcpu.stuck |= is_new;
                is_new.then_some(News::Stuck { rip })
            }
            // It was asked, and has not answered yet: nothing is known.
            (None, true) if seen.is_none() => None,
            _ => {
                vcpu.masked_since = None;
                std::mem::take(&mut vcpu.stuck).then_some(News::Recovered)
            }
        };
        Judgement { news, look: busy }
    }
}

/// Of the time since the last round, one that uses less than this part is not busy.
const BUSY_PART: u32 = 100;
/// How long until the next round, at most.
const SELDOM_MAX: Duration = Duration::from_secs(2);
/// The same, while somebody may be stuck.
const OFTEN_MAX: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(30);
    const OFF: Option<Seen> = Some(Seen { interrupts_on: false, rip: 0x1234 });
    const ON: Option<Seen> = Some(Seen { interrupts_on: true, rip: 0x1234 });

    /// A vCPU that is watched for `seconds`: what is told of it, and how often it was looked at.
    fn watch(seconds: u64, share: f64, mut seen: impl FnMut(u64) -> Option<Seen>) -> (Vec<News>, u64) {
        let mut watch = Watch::new(1, AFTER);
        let (mut now, mut news, mut looks, mut asked) = (Duration::ZERO, Vec::new(), 0, false);
        while now < Duration::from_secs(seconds) {
            let answer = if asked { seen(looks) } else { None };
            let judgement = watch.begin(now).judge(0, now.mul_f64(share), answer);
            news.extend(judgement.news);
            asked = judgement.look;
            looks += u64::from(asked);
            now += watch.pause();
        }
        (news, looks)
    }

    #[test]
    fn busy_with_interrupts_off_is_stuck_and_said_once() {
        let (news, _) = watch(600, 1.0, |_| OFF);
        assert_eq!(news, [News::Stuck { rip: 0x1234 }]);
        assert_eq!(watch(600, 0.05, |_| OFF).0, news, "also where the host gives it little");
    }

    #[test]
    fn one_that_takes_interrupts_again_has_recovered() {
        let (news, _) = watch(600, 1.0, |look| if look < 400 { OFF } else { ON });
        assert_eq!(news, [News::Stuck { rip: 0x1234 }, News::Recovered]);
    }

    #[test]
    fn neither_idle_nor_halted_nor_busy_is_stuck() {
        for (share, seen) in [(0.001, ON), (0.0, OFF), (0.001, OFF), (1.0, ON)] {
            assert_eq!(watch(600, share, |_| seen).0, []);
        }
        // Interrupts are off nearly always: nine looks of ten.
        assert_eq!(watch(6000, 1.0, |look| if look % 10 == 9 { ON } else { OFF }).0, []);
    }

    #[test]
    fn the_idle_are_left_alone_and_the_busy_looked_at_seldom() {
        assert_eq!(watch(600, 0.001, |_| ON).1, 0);
        assert!(watch(600, 1.0, |_| ON).1 <= 301);
        // One that is stuck is not looked at often once that was told.
        assert!(watch(600, 1.0, |_| OFF).1 < 300 + 600 / 2);
    }

    #[test]
    fn one_that_has_not_answered_is_not_judged() {
        assert_eq!(watch(600, 1.0, |_| None).0, []);
        let (news, _) = watch(600, 1.0, |look| if look % 3 == 0 { OFF } else { None });
        assert_eq!(news, [News::Stuck { rip: 0x1234 }]);
    }
}
