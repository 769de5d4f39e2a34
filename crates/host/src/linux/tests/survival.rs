//! What a daemon leaves that is killed while it starts a machine, or removes one, after every change that it
//! makes; and how the next one completes or removes it.

use std::{os::unix::process::ExitStatusExt, process::Command, time::Duration};

use super::{Ending, Host, InstanceId, NewsKind, Site, VolumeId, hear, plan};
use crate::linux::{
    CHANGES,
    killer::{DIE_AFTER, die_after},
};

const FOLDER: &str = "EC2VMM_TEST_FOLDER";
const CGROUP: &str = "EC2VMM_TEST_CGROUP";
const VICTIM: &str = "linux::tests::survival::victim";

/// Starts a machine, ends it and removes it.
#[tokio::test]
#[ignore = "it is killed, by the test below"]
async fn victim() {
    let variable = |name| std::env::var(name).ok();
    let (Some(after), Some(folder), Some(cgroup)) = (variable(DIE_AFTER), variable(FOLDER), variable(CGROUP))
    else {
        return;
    };
    let after = after.parse().unwrap();
    die_after(after, CHANGES);
    let linux = super::open(folder.as_ref(), cgroup.into(), "run").await;
    let plan = plan(&linux, 1).await;
    linux.start_machine(&plan).await.unwrap();
    linux.kill_machine(&plan.instance).await.unwrap();
    linux.remove_machine(&plan.instance).await.unwrap();
}

#[tokio::test]
async fn nothing_is_lost_or_left_whenever_the_daemon_is_killed() {
    let Some(site) = Site::new() else { return };
    let (mut runs, mut kills) = (0, 0);
    for after in 1.. {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", VICTIM])
            .env(DIE_AFTER, after.to_string())
            .env(FOLDER, site.folder.path())
            .env(CGROUP, &site.lab.0)
            .output()
            .unwrap()
            .status;
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "after {after} changes");
        kills = after;
        let (linux, mut news) = site.open("run").await;
        let found = linux.inventory().await.unwrap().machines;
        let (instance, volume) = (InstanceId::from_random(1), VolumeId::from_random(1));
        for machine in found {
            assert_eq!(machine.instance, instance);
            if machine.ended.is_none() {
                // Either it runs, or it was never told what to be and ends by itself.
                assert_eq!(machine.generation, 4);
                let plan = plan(&linux, 1).await;
                match linux.start_machine(&plan).await {
                    Ok(_) => {
                        runs += 1;
                        linux.reboot_machine(&instance, Duration::from_millis(1500)).await.unwrap();
                        linux.kill_machine(&instance).await.unwrap();
                    }
                    Err(error) => assert!(error.to_string().contains("still there"), "{error}"),
                }
                while hear(&mut news).await != (4, NewsKind::Ended(Ending::Silent)) {}
            }
            linux.remove_machine(&instance).await.unwrap();
        }
        assert_eq!(site.traces(), Vec::<String>::new(), "after {after} changes");
        // And started again by the next one, with the same volume.
        let plan = plan(&linux, 1).await;
        linux.start_machine(&plan).await.unwrap();
        linux.kill_machine(&instance).await.unwrap();
        linux.remove_machine(&instance).await.unwrap();
        linux.delete_volume(&volume).await.unwrap();
    }
    assert!(runs > 0 && kills > 15, "killed {kills} times, {runs} times while the machine ran");
}
