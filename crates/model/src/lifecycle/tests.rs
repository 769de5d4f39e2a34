use std::fmt::Write;

use expect_test::expect;
use proptest::prelude::{Just, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{
    AfterLoss, Circumstances, End, Fault, News, Request, StartFailure, State, Verdict, decide, hear,
};
use crate::{
    Instance,
    instances::{GuestShutdown, Protection},
    ledger::{Change, Charge, Entry, follow},
    samples,
    time::Time,
    transitions::Refusal,
};

#[test]
fn codes_and_names() {
    let names = State::ALL.map(|state| format!("{} {state}", state.code())).join(", ");
    expect!["0 pending, 16 running, 32 shutting-down, 48 terminated, 64 stopping, 80 stopped"]
        .assert_eq(&names);
    for state in State::ALL {
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
}

#[test]
fn what_every_request_comes_to() {
    let mut table = format!("{:14}", "");
    for request in Request::ALL {
        write!(table, "{:16}", format!("{request:?}")).unwrap();
    }
    for state in State::ALL {
        write!(table, "\n{state:14}", state = state.name()).unwrap();
        for request in Request::ALL {
            let verdict = match decide(state, request) {
                Verdict::Become(to) => to.name(),
                Verdict::AlreadySo => "so already",
                Verdict::Refuse => "refused",
            };
            write!(table, "{verdict:16}").unwrap();
        }
    }
    expect![[r#"
                      Start           Stop            ForceStop       Reboot          Terminate       ForceTerminate
        pending       so already      refused         refused         refused         shutting-down   shutting-down
        running       so already      stopping        stopping        running         shutting-down   shutting-down
        shutting-down refused         refused         refused         refused         so already      shutting-down
        terminated    refused         refused         refused         refused         so already      so already
        stopping      refused         so already      stopping        refused         shutting-down   shutting-down
        stopped       pending         so already      so already      refused         shutting-down   shutting-down
    "#]]
    .assert_eq(&without_trailing_blanks(&table));
}

#[test]
fn what_all_news_comes_to() {
    let mut table = format!("{:16}", "");
    let news = all_news();
    for (name, _) in &news {
        write!(table, "{name:14}").unwrap();
    }
    for state in State::ALL {
        let mut rows: Vec<(String, Vec<State>)> = Vec::new();
        for (circumstance, circumstances) in all_circumstances() {
            let row: Vec<State> = news.iter().map(|(_, news)| hear(state, news, circumstances)).collect();
            if !rows.iter().any(|(_, known)| *known == row) {
                rows.push((circumstance, row));
            }
        }
        for (index, (circumstance, row)) in rows.iter().enumerate() {
            let name = if index == 0 { state.name() } else { circumstance };
            write!(table, "\n{name:16}").unwrap();
            for to in row {
                write!(table, "{:14}", if *to == state { "." } else { to.name() }).unwrap();
            }
        }
    }
    expect![[r#"
                        Started       StartFailed   Rebooted      PoweredOff    Failed        Killed        Vanished      Cleared
        pending         running       stopped       .             stopped       stopped       .             .             .
          first launch  running       shutting-down .             stopped       stopped       .             .             .
          terminates    running       stopped       .             shutting-down stopped       .             .             .
        running         .             .             .             stopped       stopped       stopped       stopped       .
          terminates    .             .             .             shutting-down stopped       stopped       stopped       .
          starts again  .             .             .             stopped       stopped       stopped       pending       .
        shutting-down   .             .             .             .             .             .             .             terminated
        terminated      .             .             .             .             .             .             .             .
        stopping        .             .             .             stopped       stopped       stopped       stopped       .
        stopped         .             .             .             .             .             .             .             .
    "#]]
    .assert_eq(&without_trailing_blanks(&table));
}

#[test]
fn what_a_record_says_on_its_way() {
    let mut instance = samples::pending();
    let mut story = String::new();
    let mut tell = |what: &str, instance: &Instance| {
        let reason = instance.state_reason.as_ref().map_or("-", |reason| &reason.message);
        let why = instance.transition_reason.as_ref().map_or("-", |reason| &reason.0);
        let Instance { state, generation, forced, first_launch, .. } = instance;
        writeln!(
            story,
            "{what} → {state} #{generation} forced={forced} first={first_launch} | {reason} | {why}"
        )
        .unwrap();
    };
    let mut clock = (1..).map(|minute| Time::from_unix_ms(1_795_343_593_000 + minute * 60_000));
    let mut now = || clock.next().unwrap();
    let failed = End::Failed { detail: "the guest's kernel panicked".into() };
    tell("launch", &instance);
    for (what, deed) in [
        ("started", Ok(News::Started)),
        ("reboot", Err(Request::Reboot)),
        ("rebooted", Ok(News::Rebooted)),
        ("stop", Err(Request::Stop)),
        ("force stop", Err(Request::ForceStop)),
        ("ended", Ok(News::Ended(End::Killed))),
        ("start", Err(Request::Start)),
        ("no room", Ok(failure(Fault::NoRoom))),
        ("start", Err(Request::Start)),
        ("started", Ok(News::Started)),
        ("panic", Ok(News::Ended(failed))),
        ("start", Err(Request::Start)),
        ("started", Ok(News::Started)),
        ("power-off", Ok(News::Ended(End::PoweredOff))),
        ("terminate", Err(Request::Terminate)),
        ("ended", Ok(News::Ended(End::Vanished))),
        ("cleared", Ok(News::Cleared)),
    ] {
        match deed {
            Ok(news) => drop(instance.hear(&news, AfterLoss::Stop, now())),
            Err(request) => drop(instance.ask(request, now()).unwrap()),
        }
        tell(what, &instance);
    }
    expect![[r#"
        launch → pending #1 forced=false first=true | pending | -
        started → running #1 forced=false first=false | - | -
        reboot → running #1 forced=false first=false | - | -
        rebooted → running #1 forced=false first=false | - | -
        stop → stopping #2 forced=false first=false | Client.UserInitiatedShutdown: User initiated shutdown | User initiated (2026-11-22 10:37:13 GMT)
        force stop → stopping #2 forced=true first=false | Client.UserInitiatedShutdown: User initiated shutdown | User initiated (2026-11-22 10:38:13 GMT)
        ended → stopped #2 forced=true first=false | Client.UserInitiatedShutdown: User initiated shutdown | User initiated (2026-11-22 10:38:13 GMT)
        start → pending #3 forced=false first=false | pending | -
        no room → stopped #3 forced=false first=false | Server.InsufficientInstanceCapacity: Insufficient capacity to satisfy instance request: detail | Server.InsufficientInstanceCapacity
        start → pending #4 forced=false first=false | pending | -
        started → running #4 forced=false first=false | - | -
        panic → stopped #4 forced=false first=false | Server.InternalError: The machine failed: the guest's kernel panicked | Server.InternalError
        start → pending #5 forced=false first=false | pending | -
        started → running #5 forced=false first=false | - | -
        power-off → stopped #5 forced=false first=false | Client.InstanceInitiatedShutdown: Instance initiated shutdown | Client.InstanceInitiatedShutdown
        terminate → shutting-down #6 forced=false first=false | Client.UserInitiatedShutdown: User initiated shutdown | User initiated (2026-11-22 10:48:13 GMT)
        ended → shutting-down #6 forced=false first=false | Client.UserInitiatedShutdown: User initiated shutdown | User initiated (2026-11-22 10:48:13 GMT)
        cleared → terminated #6 forced=false first=false | Client.UserInitiatedShutdown: User initiated shutdown | User initiated (2026-11-22 10:48:13 GMT)
    "#]]
    .assert_eq(&story);
    assert_eq!(instance.terminated, Some(instance.state_since));
}

#[test]
fn a_first_launch_that_fails_ends() {
    let mut instance = samples::pending();
    instance.hear(&failure(Fault::NoRoom), AfterLoss::Stop, Time::from_unix_ms(1));
    let reason = instance.state_reason.clone().unwrap();
    assert_eq!(
        (instance.state, reason.code.as_str()),
        (State::ShuttingDown, "Server.InsufficientInstanceCapacity")
    );
    instance.hear(&News::Cleared, AfterLoss::Stop, Time::from_unix_ms(2));
    assert_eq!((instance.state, instance.state_reason), (State::Terminated, Some(reason)));
}

#[test]
fn the_host_went_down() {
    let mut running = samples::pending();
    running.hear(&News::Started, AfterLoss::Stop, Time::from_unix_ms(1));
    let mut again = running.clone();
    running.hear(&News::Ended(End::Vanished), AfterLoss::Stop, Time::from_unix_ms(2));
    assert_eq!((running.state, running.generation), (State::Stopped, 1));
    assert!(running.state_reason.unwrap().message.contains("host was restarted"));
    again.hear(&News::Ended(End::Vanished), AfterLoss::StartAgain, Time::from_unix_ms(2));
    assert_eq!((again.state, again.generation, again.first_launch), (State::Pending, 2, false));
}

#[test]
fn protection() {
    let mut instance = samples::pending();
    instance.hear(&News::Started, AfterLoss::Stop, Time::from_unix_ms(1));
    let now = Time::from_unix_ms(2);
    let refusals = |protection: Protection| {
        let mut instance = instance.clone();
        instance.protection = protection;
        let before = instance.clone();
        let refusals = Request::ALL.map(|request| {
            let refusal = instance.ask(request, now).err();
            if refusal.is_none() {
                instance = before.clone();
            }
            assert_eq!(instance, before);
            refusal
        });
        refusals.map(|refusal| refusal.map_or("-".to_owned(), |refusal| refusal.to_string())).join(", ")
    };
    expect![
        "-, -, -, -, the instance is protected from termination, the instance is protected from termination"
    ]
    .assert_eq(&refusals(Protection { disable_api_termination: true, ..Default::default() }));
    // Stop protection protects from termination as well, says EC2's guide.
    expect!["-, the instance is protected from stopping, the instance is protected from stopping, -, the instance is protected from stopping, the instance is protected from stopping"]
        .assert_eq(&refusals(Protection { disable_api_stop: true, ..Default::default() }));
    let mut stopped = instance.clone();
    stopped.state = State::Stopping;
    assert_eq!(stopped.ask(Request::Start, now), Err(Refusal::IncorrectState(State::Stopping)));
    // Neither protects from a power-off inside.
    stopped.state = State::Running;
    stopped.protection = Protection {
        disable_api_termination: true,
        disable_api_stop: true,
        on_guest_shutdown: GuestShutdown::Terminate,
    };
    stopped.hear(&News::Ended(End::PoweredOff), AfterLoss::Stop, now);
    assert_eq!(stopped.state, State::ShuttingDown);
}

#[test]
fn a_record_that_does_not_say_may_have_data() {
    let mut json = serde_json::to_value(samples::pending()).unwrap();
    json.as_object_mut().unwrap().remove("first_launch").unwrap();
    assert!(!serde_json::from_value::<Instance>(json).unwrap().first_launch);
}

proptest! {
    #[test]
    fn no_way_leads_out_of_the_table(
        deeds in prop::collection::vec((deeds(), -10_000_i64..100_000), 0..60),
        on_guest_shutdown in samples::shutdowns(),
        after_loss in samples::losses(),
    ) {
        let mut instance = samples::pending();
        instance.protection.on_guest_shutdown = on_guest_shutdown;
        let mut ledger: Vec<Entry> = Vec::new();
        let mut now = 0;
        for (deed, pause) in deeds {
            now += pause;
            let time = Time::from_unix_ms(now);
            let before = instance.clone();
            match &deed {
                Ok(news) => {
                    let circumstances =
                        Circumstances { first_launch: before.first_launch, on_guest_shutdown, after_loss };
                    let transition = instance.hear(news, after_loss, time);
                    prop_assert_eq!(transition.to, hear(before.state, news, circumstances));
                    prop_assert_eq!(transition.changed, before != instance);
                }
                Err(request) => match (decide(before.state, *request), instance.ask(*request, time)) {
                    (Verdict::Become(to), Ok(transition)) => prop_assert_eq!(transition.to, to),
                    (Verdict::AlreadySo, Ok(_)) | (Verdict::Refuse, Err(_)) => prop_assert_eq!(&instance, &before),
                    answer => prop_assert!(false, "{answer:?}"),
                },
            }
            check_record(&before, &instance)?;
            keep_ledger(&mut ledger, &before, &instance, time);
            // Heard twice by a daemon that was killed between.
            keep_ledger(&mut ledger, &before, &instance, time);
            check_ledger(&ledger, &instance)?;
        }
    }
}

fn check_record(before: &Instance, after: &Instance) -> Result<(), proptest::test_runner::TestCaseError> {
    prop_assert!(after.generation >= before.generation && after.generation <= before.generation + 1);
    prop_assert!(before.state != State::Terminated || after == before, "terminated is for ever");
    prop_assert!(
        before.state != State::ShuttingDown || matches!(after.state, State::ShuttingDown | State::Terminated)
    );
    prop_assert_eq!(after.terminated.is_some(), after.state == State::Terminated);
    prop_assert!(after.reboot_requested.is_none() || after.state == State::Running);
    let may_be_first = matches!(after.state, State::Pending | State::ShuttingDown | State::Terminated);
    prop_assert!(!after.first_launch || may_be_first);
    prop_assert!(before.first_launch || !after.first_launch);
    // Two runs of an instance never have one generation.
    prop_assert!(
        after.state != State::Pending
            || before.state == State::Pending
            || after.generation > before.generation
    );
    prop_assert!(after.state != State::Running || after.generation == before.generation);
    Ok(())
}

fn keep_ledger(ledger: &mut Vec<Entry>, before: &Instance, after: &Instance, now: Time) {
    for change in follow(before, after, now) {
        match change {
            Change::Open(entry) => {
                if !ledger.iter().any(|known| known.key() == entry.key()) {
                    ledger.push(entry);
                }
            }
            Change::Close { key } => {
                for entry in ledger.iter_mut().filter(|entry| entry.key() == key) {
                    entry.close(now);
                }
            }
        }
    }
}

fn check_ledger(ledger: &[Entry], instance: &Instance) -> Result<(), proptest::test_runner::TestCaseError> {
    let open: Vec<&Entry> = ledger.iter().filter(|entry| entry.to.is_none()).collect();
    prop_assert_eq!(open.len(), usize::from(instance.state == State::Running));
    let computes = |entry: &&Entry| matches!(entry.charge, Charge::Compute { .. });
    prop_assert!(open.iter().all(computes));
    let mut keys: Vec<String> = ledger.iter().map(Entry::key).collect();
    keys.sort_unstable();
    keys.dedup();
    prop_assert_eq!(keys.len(), ledger.len());
    for entry in ledger {
        prop_assert!(entry.to.is_none_or(|to| to >= entry.from));
    }
    Ok(())
}

fn all_news() -> Vec<(&'static str, News)> {
    vec![
        ("Started", News::Started),
        ("StartFailed", failure(Fault::Host)),
        ("Rebooted", News::Rebooted),
        ("PoweredOff", News::Ended(End::PoweredOff)),
        ("Failed", News::Ended(End::Failed { detail: "a panic".into() })),
        ("Killed", News::Ended(End::Killed)),
        ("Vanished", News::Ended(End::Vanished)),
        ("Cleared", News::Cleared),
    ]
}

fn all_circumstances() -> Vec<(String, Circumstances)> {
    let first = |first_launch| Circumstances { first_launch, ..Circumstances::default() };
    vec![
        (String::new(), first(false)),
        ("  first launch".into(), first(true)),
        (
            "  terminates".into(),
            Circumstances { on_guest_shutdown: GuestShutdown::Terminate, ..Circumstances::default() },
        ),
        (
            "  starts again".into(),
            Circumstances { after_loss: AfterLoss::StartAgain, ..Circumstances::default() },
        ),
    ]
}

fn failure(fault: Fault) -> News {
    News::StartFailed(StartFailure { fault, detail: "detail".into() })
}

fn deeds() -> impl Strategy<Value = Result<News, Request>> {
    let news = all_news().into_iter().map(|(_, news)| news).collect::<Vec<_>>();
    prop_oneof![
        prop::sample::select(news).prop_map(Ok),
        prop::sample::select(Request::ALL.to_vec()).prop_map(Err),
        // Else most lives are short.
        Just(Ok(News::Started)),
    ]
}

fn without_trailing_blanks(table: &str) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
