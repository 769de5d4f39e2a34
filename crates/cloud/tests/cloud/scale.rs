//! Many instances: all are there, page by page, and nobody waits for others. Prints what it took, and asserts
//! no speed.
//!
//! `EC2VMM_SCALE` says how many instances there are.

use std::time::{Duration, Instant};

use ec2vmm_cloud::{
    Config,
    instances::{DescribeInstances, Launch},
    page::Paging,
};
use ec2vmm_host::{host::Capacity, simulated::Settings};
use ec2vmm_model::lifecycle::State;

use crate::world::{World, all};

#[tokio::test]
async fn many_instances() {
    let many: u32 = std::env::var("EC2VMM_SCALE").map_or(300, |count| count.parse().unwrap());
    let settings = Settings {
        capacity: Capacity { cpus: 1 << 20, memory_mib: 1 << 40 },
        start_takes: Duration::from_millis(1),
        ..Settings::default()
    };
    let world = World::with(Config::default(), settings).await;
    let launch = |count| Launch {
        min_count: count,
        max_count: count,
        instance_type: "t3.nano".to_owned(),
        ..world.one()
    };
    let begun = Instant::now();
    let mut left = many;
    while left > 0 {
        let some = left.min(100);
        world.cloud.launch(launch(some)).await.unwrap();
        left -= some;
    }
    println!("{many} launched by hundreds: {:?}", begun.elapsed());
    while !world.instances().iter().all(|it| it.state == State::Running) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("all run: {:?}", begun.elapsed());

    let mut launches = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        world.cloud.launch(launch(1)).await.unwrap();
        launches.push(begun.elapsed());
    }
    launches.sort();
    println!("one more, at {many}: median {:?}, most {:?}", launches[10], launches[19]);

    let mut pages = Vec::new();
    let mut shown = 0;
    let mut next_token = None;
    loop {
        let what = DescribeInstances { paging: Paging { max_results: Some(1_000), next_token }, ..all() };
        let begun = Instant::now();
        let page = world.cloud.describe_instances(&what).await.unwrap();
        pages.push(begun.elapsed());
        shown += page.items.len();
        next_token = page.next_token;
        if next_token.is_none() {
            break;
        }
    }
    pages.sort();
    let (median, most) = (pages[pages.len() / 2], pages[pages.len() - 1]);
    println!("{shown} shown in {} pages of 1,000: median {median:?}, most {most:?}", pages.len());
    assert_eq!(shown, many as usize + 20);

    let begun = Instant::now();
    let running: Vec<String> = world.instances().iter().map(|it| it.id.to_string()).collect();
    for some in running.chunks(1_000) {
        world.cloud.terminate_instances(some).await.unwrap();
    }
    println!("all asked to end: {:?}", begun.elapsed());
    world.cloud.shut_down().await;
}
