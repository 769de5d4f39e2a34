//! A machine that another daemon has started: nobody waits for its end but the kernel.

use std::process::Command;

use ec2vmm_vmm_api::{Exit, FailureKind};

use super::{Ending, Host, InstanceId, NewsKind, Site, hear, plan};

const FOLDER: &str = "EC2VMM_TEST_FOLDER";
const CGROUP: &str = "EC2VMM_TEST_CGROUP";
const EARLIER: &str = "linux::tests::adoption::earlier_daemon";

/// Starts a machine, and ends.
#[tokio::test]
#[ignore = "run by the test below"]
async fn earlier_daemon() {
    let variable = |name| std::env::var(name).ok();
    let (Some(folder), Some(cgroup)) = (variable(FOLDER), variable(CGROUP)) else { return };
    let linux = super::open(folder.as_ref(), cgroup.into(), "rebel").await;
    let plan = plan(&linux, 1).await;
    linux.start_machine(&plan).await.unwrap();
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "a test that leaves something out says so")]
async fn what_kills_an_adopted_machine_is_told() {
    let Some(site) = Site::new() else { return };
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", EARLIER])
        .env(FOLDER, site.folder.path())
        .env(CGROUP, &site.lab.0)
        .status();
    assert!(status.unwrap().success());
    let (linux, mut news) = site.open("run").await;
    let instance = InstanceId::from_random(1);
    let found = linux.inventory().await.unwrap().machines;
    assert_eq!(found[0].ended, None);
    std::fs::write(site.path("go"), "").unwrap();
    let (generation, NewsKind::Ended(ending)) = hear(&mut news).await else { panic!("it has ended") };
    assert_eq!(generation, 4);
    match ending {
        Ending::Told { exit, failure: Some(failure) } => {
            assert_eq!(exit, Exit::Failed(FailureKind::ForbiddenCall));
            let start = "the machine process was killed by its sandbox: it made";
            assert!(failure.message.starts_with(start), "{failure:?}");
        }
        // A kernel before 6.15 does not tell it, and neither does its log where this user may not read it.
        Ending::Silent => eprintln!("SKIPPED: this host does not tell how a stranger's child has ended"),
        other => panic!("{other:?}"),
    }
    linux.remove_machine(&instance).await.unwrap();
    assert_eq!(site.traces(), Vec::<String>::new());
}
