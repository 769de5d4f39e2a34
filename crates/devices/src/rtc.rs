//! The real-time clock of the PC, an MC146818 at ports 0x70 (index) and 0x71 (data): time of day in BCD,
//! 24 hours, in UTC. No alarm, no periodic interrupt, no battery-backed memory: those read as zero.

use serde::{Deserialize, Serialize};

use crate::state::BadState;

/// The host's clock.
pub trait WallClock: Send {
    /// Nanoseconds since 1970-01-01 00:00 UTC.
    fn now_ns(&self) -> i128;
}

/// The clock. Ports are offsets from 0x70.
pub struct Rtc<C: WallClock> {
    clock: C,
    state: State,
}

/// What the guest has set.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    index: u8,
    /// Seconds to add to the host's clock.
    offset: i64,
    /// While the guest holds the clock (register B, SET): the time that it is setting.
    held: Option<Time>,
}

impl<C: WallClock> Rtc<C> {
    /// A clock that shows the host's time.
    pub fn new(clock: C) -> Self {
        Self { clock, state: State::default() }
    }

    /// Goes on from `state`, as after a snapshot.
    ///
    /// # Errors
    /// No guest can have set it so.
    pub fn restore(&mut self, state: State) -> Result<(), BadState> {
        let held = state.held.is_none_or(|time| time.can_be_set());
        if !held || !(-SECONDS_MAX..=2 * SECONDS_MAX).contains(&state.offset) {
            return Err(BadState("the clock's time is none"));
        }
        self.state = state;
        Ok(())
    }

    /// What the guest has set.
    pub fn state(&self) -> State {
        self.state
    }

    /// Reads a port: 0 is the index, 1 the data.
    pub fn read(&self, port: u8) -> u8 {
        match port {
            INDEX => self.state.index,
            DATA => self.register(self.state.index),
            _ => 0xff,
        }
    }

    /// Writes a port: 0 is the index, 1 the data.
    pub fn write(&mut self, port: u8, value: u8) {
        match port {
            // Bit 7 masks NMIs, of which there are none.
            INDEX => self.state.index = value & 0x7f,
            DATA => self.set_register(self.state.index, value),
            _ => {}
        }
    }

    /// A machine reset: like a battery, it keeps the time that the guest has set.
    pub fn reset(&mut self) {
        let Self { clock: _, state: State { index, offset: _, held } } = self;
        *index = 0;
        *held = None;
    }

    fn register(&self, index: u8) -> u8 {
        let time = self.time();
        match index {
            SECONDS => bcd(time.second),
            MINUTES => bcd(time.minute),
            HOURS => bcd(time.hour),
            WEEKDAY => time.weekday(),
            DAY => bcd(time.day),
            MONTH => bcd(time.month),
            YEAR => bcd(time.year % 100),
            CENTURY => bcd(time.year / 100),
            A => DIVIDER_32_KHZ | if self.is_updating() { UPDATING } else { 0 },
            B => HOURS_24 | if self.state.held.is_some() { SET } else { 0 },
            D => VALID,
            _ => 0,
        }
    }

    fn set_register(&mut self, index: u8, value: u8) {
        if index == B {
            return self.hold(value & SET != 0);
        }
        let mut time = self.time();
        let number = from_bcd(value);
        match index {
            SECONDS => time.second = number,
            MINUTES => time.minute = number,
            HOURS => time.hour = number,
            DAY => time.day = number,
            MONTH => time.month = number,
            YEAR => time.year = time.year / 100 * 100 + number,
            CENTURY => time.year = number * 100 + time.year % 100,
            _ => return,
        }
        match &mut self.state.held {
            Some(held) => *held = time,
            None => self.set_time(time),
        }
    }

    fn hold(&mut self, hold: bool) {
        match (hold, self.state.held) {
            (true, None) => self.state.held = Some(self.time()),
            (false, Some(time)) => {
                self.state.held = None;
                self.set_time(time);
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn set_time(&mut self, time: Time) {
        self.state.offset = time.to_seconds() - self.host_seconds();
    }

    fn time(&self) -> Time {
        self.state.held.unwrap_or_else(|| Time::from_seconds(self.host_seconds() + self.state.offset))
    }

    /// Whether the chip is about to count up: its registers are not to be read now.
    fn is_updating(&self) -> bool {
        let left = SECOND_NS - self.clock.now_ns().rem_euclid(SECOND_NS);
        self.state.held.is_none() && left <= UPDATE_NS
    }

    /// Within what the registers can show: a host clock beyond the year 9999 stands there.
    fn host_seconds(&self) -> i64 {
        let seconds = self.clock.now_ns().div_euclid(SECOND_NS);
        i64::try_from(seconds.clamp(0, SECONDS_MAX.into())).unwrap_or(SECONDS_MAX)
    }
}

/// A date and time in UTC, as the guest has written it: its numbers may be out of range.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Time {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Time {
    /// Days are counted in 400-year eras that begin on 1 March, so that leap days come last.
    fn from_seconds(seconds: i64) -> Self {
        let seconds = seconds.clamp(0, SECONDS_MAX);
        let days = seconds.div_euclid(DAY_SECONDS) + DAYS_TO_1970;
        let of_day = seconds.rem_euclid(DAY_SECONDS);
        let era = days.div_euclid(ERA_DAYS);
        let of_era = days.rem_euclid(ERA_DAYS);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: of_year - (153 * march_month + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// Numbers out of range carry over: 31 February is 2 or 3 March.
    fn to_seconds(self) -> i64 {
        self.days() * DAY_SECONDS + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// Whether it is made of numbers that fit the registers, though they may be out of range.
    fn can_be_set(self) -> bool {
        let Self { year, month, day, hour, minute, second } = self;
        let register = 0..=from_bcd(0xff);
        [month, day, hour, minute, second].iter().all(|number| register.contains(number))
            && (0..=from_bcd(0xff) * 101).contains(&year)
    }

    /// Since 1970-01-01.
    fn days(self) -> i64 {
        let months = self.year * 12 + self.month - 1;
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        let year = year - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let march_month = (month + 9) % 12;
        let of_year = (153 * march_month + 2) / 5 + self.day - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        era * ERA_DAYS + of_era - DAYS_TO_1970
    }

    /// 1 is Sunday. 1970-01-01 was a Thursday.
    fn weekday(self) -> u8 {
        u8::try_from((self.days() + 4).rem_euclid(7) + 1).unwrap_or(1)
    }
}

fn bcd(number: i64) -> u8 {
    u8::try_from(number.rem_euclid(100) / 10 * 16 + number.rem_euclid(10)).unwrap_or(0)
}

fn from_bcd(value: u8) -> i64 {
    i64::from(value >> 4) * 10 + i64::from(value & 0x0f)
}

const INDEX: u8 = 0;
const DATA: u8 = 1;

// Registers. The century's index is what the FADT says.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const D: u8 = 0x0d;
/// Index of the century register, for the FADT.
pub const CENTURY: u8 = 0x32;

// Bits of A, B and D.
const UPDATING: u8 = 0x80;
const DIVIDER_32_KHZ: u8 = 0x26;
const SET: u8 = 0x80;
const HOURS_24: u8 = 0x02;
const VALID: u8 = 0x80;

const SECOND_NS: i128 = 1_000_000_000;
/// From UPDATING to the update (MC146818A data sheet).
const UPDATE_NS: i128 = 244_000;
const DAY_SECONDS: i64 = 86_400;
const ERA_DAYS: i64 = 146_097;
/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;
/// 9999-12-31 23:59:59.
const SECONDS_MAX: i64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    };

    use proptest::prelude::{any, prop, proptest};

    use super::{Rtc, State, Time, WallClock};

    #[derive(Clone)]
    struct Clock(Arc<AtomicI64>);

    impl WallClock for Clock {
        fn now_ns(&self) -> i128 {
            i128::from(self.0.load(Ordering::SeqCst)) * 1_000_000
        }
    }

    fn rtc(ms: i64) -> (Rtc<Clock>, Arc<AtomicI64>) {
        let now = Arc::new(AtomicI64::new(ms));
        (Rtc::new(Clock(Arc::clone(&now))), now)
    }

    fn get(rtc: &mut Rtc<Clock>, index: u8) -> u8 {
        rtc.write(0, index | 0x80);
        rtc.read(1)
    }

    fn set(rtc: &mut Rtc<Clock>, index: u8, value: u8) {
        rtc.write(0, index);
        rtc.write(1, value);
    }

    fn shown(rtc: &mut Rtc<Clock>) -> String {
        let registers = [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00, 0x06].map(|index| get(rtc, index));
        let [c, y, mo, d, h, mi, s, w] = registers;
        format!("{c:02x}{y:02x}-{mo:02x}-{d:02x} {h:02x}:{mi:02x}:{s:02x} day {w}")
    }

    #[test]
    fn shows_the_hosts_time() {
        // date -u -d @1709251199
        let (mut rtc, now) = rtc(1_709_251_199_000);
        assert_eq!(shown(&mut rtc), "2024-02-29 23:59:59 day 5");
        now.fetch_add(1000, Ordering::SeqCst);
        assert_eq!(shown(&mut rtc), "2024-03-01 00:00:00 day 6");
        assert_eq!(get(&mut rtc, 0x0b), 2);
        assert_eq!(get(&mut rtc, 0x0d), 0x80);
        assert_eq!(get(&mut rtc, 0x0f), 0);
    }

    #[test]
    fn says_when_it_is_about_to_update() {
        let (mut rtc, now) = rtc(5_000);
        assert_eq!(get(&mut rtc, 0x0a), 0x26);
        now.store(5_999, Ordering::SeqCst);
        assert_eq!(get(&mut rtc, 0x0a), 0x26, "a millisecond before");
        assert_eq!(Rtc::new(Late).register(0x0a), 0xa6);
    }

    struct Late;

    impl WallClock for Late {
        fn now_ns(&self) -> i128 {
            999_800_000
        }
    }

    #[test]
    fn the_guest_sets_it_as_linux_does() {
        let (mut rtc, now) = rtc(1_709_251_199_000);
        set(&mut rtc, 0x0b, 0x82);
        now.fetch_add(10_000, Ordering::SeqCst);
        for (index, value) in [(9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58), (0x32, 0x19)]
        {
            set(&mut rtc, index, value);
        }
        assert_eq!(get(&mut rtc, 0x0b), 0x82);
        set(&mut rtc, 0x0b, 0x02);
        assert_eq!(shown(&mut rtc), "1999-12-31 23:59:58 day 6");
        now.fetch_add(2_000, Ordering::SeqCst);
        assert_eq!(shown(&mut rtc), "2000-01-01 00:00:00 day 7");
        rtc.reset();
        assert_eq!(shown(&mut rtc), "2000-01-01 00:00:00 day 7");
        let state = rtc.state();
        let mut rtc = Rtc::new(rtc.clock.clone());
        rtc.restore(state).unwrap();
        assert_eq!(shown(&mut rtc), "2000-01-01 00:00:00 day 7");
    }

    proptest! {
        #[test]
        fn dates_come_back(seconds in 0i64..=super::SECONDS_MAX) {
            assert_eq!(Time::from_seconds(seconds).to_seconds(), seconds);
        }

        #[test]
        fn no_saved_state_panics(
            offset: i64, hold: bool, numbers: [i64; 6], small: bool, now: i64,
            accesses in prop::collection::vec((any::<u8>(), any::<u8>()), 1..50),
        ) {
            let fit = |number: i64| if small { number.rem_euclid(165) } else { number };
            let [year, month, day, hour, minute, second] = numbers.map(fit);
            let held = hold.then_some(Time { year, month, day, hour, minute, second });
            let (mut rtc, _) = rtc(now);
            if rtc.restore(State { index: 7, offset, held }).is_ok() {
                for (port, value) in accesses {
                    rtc.write(port % 3, value);
                    rtc.read(port % 3);
                }
                shown(&mut rtc);
            }
        }

        #[test]
        fn no_access_panics(accesses in prop::collection::vec((any::<u8>(), any::<u8>()), 1..200), now: i64) {
            let (mut rtc, _) = rtc(now);
            for (port, value) in accesses {
                rtc.write(port % 3, value);
                rtc.read(port % 3);
            }
            for index in 0..=255 {
                get(&mut rtc, index);
            }
        }
    }
}
