//! Listings: ids, filters, pages, tags, types, events, consoles.

use std::collections::BTreeSet;

use ec2vmm_cloud::{
    events::{DescribeEvents, EventKind},
    filters::Filter,
    instances::{DescribeInstances, Launch},
    page::Paging,
    types::DescribeTypes,
};
use ec2vmm_model::lifecycle::State;
use expect_test::expect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{World, all, ids, tags, told};

fn filter(name: &str, values: &[&str]) -> Filter {
    Filter { name: name.to_owned(), values: ids(values) }
}

#[tokio::test(start_paused = true)]
async fn filters() {
    let world = World::new().await;
    let launch = |name: &str, kind: &str| Launch {
        tags: tags(&[("Name", name), ("team", "a*b")]),
        instance_type: kind.to_owned(),
        ..world.one()
    };
    for (name, kind) in [("web-1", "t3.micro"), ("web-2", "t3.small"), ("db", "m5.large")] {
        world.cloud.launch(launch(name, kind)).await.unwrap();
        world.settle().await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let db = world.instances().into_iter().find(|it| it.tags.0["Name"] == "db").unwrap();
    world.cloud.stop_instances(&ids(&[db.id.as_str()]), false).await.unwrap();
    world.settle().await;
    let (address, reservation) = (db.interface.address.to_string(), db.reservation.to_string());
    let (vpc, subnet, launched) =
        (db.interface.vpc.to_string(), db.interface.subnet.to_string(), db.launched.to_string());
    let cases: Vec<(Vec<Filter>, &str)> = vec![
        (vec![], "db web-1 web-2"),
        (vec![filter("tag:Name", &["web-*"])], "web-1 web-2"),
        (vec![filter("tag:Name", &["web-?", "db"])], "db web-1 web-2"),
        (vec![filter("tag:team", &["a\\*b"])], "db web-1 web-2"),
        (vec![filter("tag:nothing", &["*"])], ""),
        (vec![filter("tag-key", &["te?m"])], "db web-1 web-2"),
        (vec![filter("instance-type", &["t3.*"])], "web-1 web-2"),
        (vec![filter("instance-state-name", &["stopped"])], "db"),
        (vec![filter("instance-state-code", &["16"])], "web-1 web-2"),
        (vec![filter("instance-type", &["t3.*"]), filter("tag:Name", &["*2"])], "web-2"),
        (vec![filter("private-ip-address", &[&address])], "db"),
        (vec![filter("reservation-id", &[&reservation])], "db"),
        (vec![filter("image-id", &[&world.image])], "db web-1 web-2"),
        (vec![filter("vpc-id", &[&vpc]), filter("subnet-id", &[&subnet])], "db web-1 web-2"),
        (vec![filter("launch-time", &[&launched])], "db"),
        (vec![filter("architecture", &["arm64"])], ""),
        (vec![filter("key-name", &["*"])], ""),
        (vec![filter("instance-id", &["i-*"])], "db web-1 web-2"),
        (vec![filter("tag:Name", &[])], ""),
    ];
    for (filters, expected) in cases {
        let what = DescribeInstances { filters: filters.clone(), ..all() };
        let found = world.cloud.describe_instances(&what).await.unwrap().items;
        let names: BTreeSet<_> = found.iter().map(|it| it.instance.tags.0["Name"].clone()).collect();
        assert_eq!(names.into_iter().collect::<Vec<_>>().join(" "), expected, "{filters:?}");
    }
    let odd = DescribeInstances { filters: vec![filter("shoe-size", &["9"])], ..all() };
    expect!["InvalidParameterValue: The filter 'shoe-size' is invalid"]
        .assert_eq(&told(world.cloud.describe_instances(&odd).await));
}

#[tokio::test(start_paused = true)]
async fn pages_stay_in_order_while_instances_come_and_go() {
    let world = World::new().await;
    let many = Launch { min_count: 23, max_count: 23, instance_type: "t3.nano".to_owned(), ..world.one() };
    world.cloud.launch(many.clone()).await.unwrap();
    world.settle().await;
    let before: BTreeSet<String> = world.instances().iter().map(|it| it.id.to_string()).collect();
    let (mut shown, mut token, mut pages) = (Vec::new(), None, 0);
    loop {
        let paging = Paging { max_results: Some(5), next_token: token };
        let page = world.cloud.describe_instances(&DescribeInstances { paging, ..all() }).await.unwrap();
        shown.extend(page.items.iter().map(|it| it.instance.id.to_string()));
        pages += 1;
        if pages == 2 {
            world.cloud.launch(Launch { min_count: 3, max_count: 3, ..many.clone() }).await.unwrap();
        }
        match page.next_token {
            Some(next) => token = Some(next),
            None => break,
        }
    }
    assert!(shown.is_sorted() && shown.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(before.iter().all(|id| shown.contains(id)));
    let asked = |max_results, next_token: Option<&str>, ids: Vec<String>| DescribeInstances {
        ids,
        paging: Paging { max_results, next_token: next_token.map(str::to_owned) },
        ..all()
    };
    let mut text = String::new();
    for what in [
        asked(Some(4), None, vec![]),
        asked(Some(1_001), None, vec![]),
        asked(None, Some("bogus"), vec![]),
        asked(None, Some("dm9sdW1lL3ZvbC0x"), vec![]),
        asked(Some(5), None, vec![shown[0].clone()]),
    ] {
        text += &told(world.cloud.describe_instances(&what).await);
        text.push('\n');
    }
    expect![[r#"
        InvalidParameterValue: Value ( 4 ) for parameter maxResults is invalid. Expecting a value greater than or equal to 5.
        InvalidParameterValue: Value ( 1001 ) for parameter maxResults is invalid. Expecting a value less than or equal to 1000.
        InvalidNextToken: The token 'bogus' is invalid
        InvalidNextToken: The token 'dm9sdW1lL3ZvbC0x' is invalid
        InvalidParameterCombination: The parameter instancesSet cannot be used with the parameter maxResults
    "#]].assert_eq(&text);
    let exactly = asked(Some(26), None, vec![]);
    assert_eq!(world.cloud.describe_instances(&exactly).await.unwrap().next_token, None);
}

#[tokio::test(start_paused = true)]
async fn tags_come_and_go_on_all_or_none() {
    let world = World::new().await;
    let id = world.running().await;
    let volume = world.record(&id).await.volumes[0].to_string();
    let both = ids(&[&id, &volume, &world.image]);
    world.cloud.create_tags(&both, &tags(&[("a", "1"), ("b", "2")])).await.unwrap();
    let missing = ids(&[&id, "vol-00000000000000000"]);
    let mut text = String::new();
    for result in [
        world.cloud.create_tags(&missing, &tags(&[("c", "3")])).await,
        world.cloud.create_tags(&ids(&["lake-1"]), &tags(&[("c", "3")])).await,
        world.cloud.create_tags(&ids(&[&id]), &tags(&[("AWS:x", "3")])).await,
        world.cloud.create_tags(&ids(&[&id]), &tags(&[("", "3")])).await,
        world.cloud.create_tags(&ids(&[&id]), &tags(&[("c", "\u{1b}[2J")])).await,
        world.cloud.create_tags(&ids(&[&id]), &tags(&[("c", &"x".repeat(257))])).await,
        world.cloud.delete_tags(&ids(&[&id]), &[("aws:x".to_owned(), None)]).await,
        world.cloud.create_tags(&[], &tags(&[("c", "3")])).await,
    ] {
        text += &told(result);
        text.push('\n');
    }
    let names: Vec<String> = (0..49).map(|number| format!("t{number}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    text += &told(world.cloud.create_tags(&ids(&[&id]), &tags(&many)).await);
    expect![[r#"
        InvalidVolume.NotFound: The volume 'vol-00000000000000000' does not exist.
        InvalidID: The ID 'lake-1' is not valid
        InvalidParameterValue: Tag keys starting with 'aws:' are reserved for internal use
        InvalidParameterValue: Tag keys must have 1 to 128 characters.
        InvalidParameterValue: Tag 'c' holds a control character.
        InvalidParameterValue: Tag values must have at most 256 characters.
        InvalidParameterValue: Tag keys starting with 'aws:' are reserved for internal use
        MissingParameter: The request must contain the parameter resourceIdSet
        TagLimitExceeded: Tag limit exceeded: a resource can have at most 50 tags."#]]
    .assert_eq(&text);
    assert_eq!(world.record(&id).await.tags, tags(&[("a", "1"), ("b", "2")]));
    let gone = [("a".to_owned(), Some("other".to_owned())), ("b".to_owned(), None)];
    world.cloud.delete_tags(&both, &gone).await.unwrap();
    assert_eq!(world.record(&id).await.tags, tags(&[("a", "1")]));
    world.cloud.delete_tags(&both, &[]).await.unwrap();
    assert_eq!(world.record(&id).await.tags, tags(&[]));
    assert_eq!(world.state(&id).await, State::Running);
}

#[tokio::test(start_paused = true)]
async fn events_are_told_once_and_in_order() {
    let mut world = World::new().await;
    let mut stream = world.cloud.follow_events(None).unwrap();
    let id = world.running().await;
    let first = stream.next().await.unwrap();
    assert_eq!((first.kind.clone(), first.instance.clone()), (EventKind::Launched, Some(world.id(&id))));
    let second = stream.next().await.unwrap();
    assert_eq!(second.kind, EventKind::StateChanged { from: State::Pending, to: State::Running });
    assert!(first.sequence < second.sequence);
    world.cloud.stop_instances(&ids(&[&id]), false).await.unwrap();
    world.settle().await;
    // A stream ends with its daemon. Where it was left, the next one goes on.
    world.restart().await;
    while stream.next().await.is_some() {}
    let later = DescribeEvents { after: Some(second.sequence), ..Default::default() };
    let rest = world.cloud.describe_events(&later).await.unwrap();
    let mut again = world.cloud.follow_events(Some(second.sequence)).unwrap();
    for event in &rest {
        assert_eq!(again.next().await.unwrap(), *event);
    }
    let of_one = DescribeEvents { instance: Some(id.clone()), max_results: Some(2), ..Default::default() };
    assert_eq!(world.cloud.describe_events(&of_one).await.unwrap().len(), 2);
    // A number of before a backup was put back: what happens from now on is told all the same.
    let mut beyond = world.cloud.follow_events(Some(u64::MAX)).unwrap();
    world.cloud.create_tags(&ids(&[&id]), &tags(&[("a", "1")])).await.unwrap();
    assert_eq!(beyond.next().await.unwrap().kind, EventKind::Modified);
    assert_eq!(again.next().await.unwrap().kind, EventKind::Modified);
    world.cloud.shut_down().await;
    assert!(again.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_log_does_not_grow_without_end() {
    let config = ec2vmm_cloud::Config { events_max: 10, ..Default::default() };
    let mut world = World::with(config, Default::default()).await;
    for _ in 0..4 {
        let id = world.running().await;
        world.cloud.terminate_instances(&ids(&[&id])).await.unwrap();
        world.settle().await;
    }
    tokio::time::sleep(2 * world.config.sweep_every).await;
    let events = world.cloud.describe_events(&Default::default()).await.unwrap();
    assert_eq!(events.len(), 10);
    world.restart().await;
    assert_eq!(world.cloud.describe_events(&Default::default()).await.unwrap(), events);
}

#[tokio::test(start_paused = true)]
async fn types_and_what_runs_here() {
    let world = World::new().await;
    let named = DescribeTypes { names: ids(&["t3.micro", "t4g.micro"]), ..Default::default() };
    let found = world.cloud.describe_types(&named).await.unwrap().items;
    let shown: Vec<_> = found.iter().map(|kind| (kind.facts.name, kind.runnable)).collect();
    assert_eq!(shown, [("t3.micro", true), ("t4g.micro", false)]);
    let unknown = DescribeTypes { names: ids(&["t3.micro", "t9.x"]), ..Default::default() };
    expect!["InvalidInstanceType: The following supplied instance types do not exist: [t9.x]"]
        .assert_eq(&told(world.cloud.describe_types(&unknown).await));
    let mut paging = Paging { max_results: Some(100), next_token: None };
    let mut count = 0;
    loop {
        let what = DescribeTypes { runnable_only: true, paging: paging.clone(), ..Default::default() };
        let page = world.cloud.describe_types(&what).await.unwrap();
        count += page.items.len();
        assert!(page.items.iter().all(|kind| kind.runnable));
        match page.next_token {
            Some(next) => paging.next_token = Some(next),
            None => break,
        }
    }
    assert!(count > 300);
}

#[tokio::test(start_paused = true)]
async fn a_console_is_a_line_to_a_machine_that_runs() {
    let world = World::new().await;
    let id = world.running().await;
    let mut line = world.cloud.console_stream(&id).await.unwrap();
    line.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    line.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
    world.cloud.stop_instances(&ids(&[&id]), true).await.unwrap();
    world.settle().await;
    // Who follows it learns that it is over.
    assert_eq!(line.read(&mut echo).await.unwrap(), 0);
    assert!(world.cloud.console_output(&id).await.unwrap().bytes.ends_with(b"hello"));
    assert_eq!(
        told(world.cloud.console_stream(&id).await.map(drop)),
        format!("IncorrectInstanceState: The instance '{id}' has no machine that runs.")
    );
    assert!(told(world.cloud.usage(&id).await).starts_with("IncorrectInstanceState"));
}
