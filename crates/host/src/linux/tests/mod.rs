//! Machines whose process is a fake. They need a cgroup v2 to write to, and neither KVM nor network.
#![allow(unsafe_code, reason = "the fake's inherited descriptors")]

mod adoption;
mod fake;
mod survival;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ec2vmm_model::{
    credits::Throttle,
    ids::{InstanceId, VolumeId},
    images::DiskFormat,
};
use ec2vmm_vmm_api::{Exit, FailureKind, config::RateLimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::broadcast,
};

use super::{Config, Linux};
use crate::cgroups::tests::Lab;
use crate::host::{
    Ending, Error, FoundMachine, GuestData, Host, ImageFile, MachinePlan, News, NewsKind, VolumePlan,
};

/// A host of its own.
struct Site {
    folder: tempfile::TempDir,
    lab: Lab,
}

impl Site {
    fn new() -> Option<Self> {
        let site = Self { lab: Lab::new()?, folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(site.path("state")).unwrap();
        std::fs::create_dir(site.path("state/images")).unwrap();
        std::fs::write(site.path("state/images/image.raw"), vec![7; 1 << 20]).unwrap();
        // Stands for /dev/kvm.
        std::fs::write(site.path("kvm"), "").unwrap();
        fake::program(site.folder.path());
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The daemon's view of it, until it is dropped.
    async fn open(&self, part: &str) -> (Linux, broadcast::Receiver<News>) {
        let linux = open(self.folder.path(), self.lab.0.clone(), part).await;
        let news = linux.news();
        (linux, news)
    }

    /// What is left of machines.
    fn traces(&self) -> Vec<String> {
        let folders = [self.path("run/machines"), self.lab.0.clone()];
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("i-")).collect()
    }

    fn pid(&self, plan: &MachinePlan) -> u32 {
        let path = self.path(&format!("run/machines/{}/pid", plan.instance));
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }
}

async fn open(folder: &Path, cgroup: PathBuf, part: &str) -> Linux {
    Linux::start(config(folder, cgroup, part)).await.unwrap()
}

fn config(folder: &Path, cgroup: PathBuf, part: &str) -> Config {
    Config {
        state_dir: folder.join("state"),
        run_dir: folder.join("run"),
        cgroup,
        limits: false,
        program: folder.join("fake-vmm"),
        program_variables: vec![
            (fake::PART.to_owned(), part.to_owned()),
            (fake::FOLDER.to_owned(), folder.display().to_string()),
        ],
        sandbox: ec2vmm_vmm_api::SandboxKind::Full,
        ids: crate::sandbox::DAEMON_IDS,
        kvm_device: folder.join("kvm"),
        emulated_kvm: true,
        network: None,
    }
}

async fn plan(linux: &Linux, number: u128) -> MachinePlan {
    let volume = VolumeId::from_random(number);
    let image = Some(ImageFile { file: "image.raw".into(), format: DiskFormat::Raw });
    linux.create_volume(&VolumePlan { id: volume.clone(), size_gib: 1, image }).await.unwrap();
    MachinePlan {
        instance: InstanceId::from_random(number),
        generation: 4,
        instance_type: "t3.micro".into(),
        vcpus: 2,
        memory_mib: 64,
        throttle: Throttle::Full,
        volumes: vec![volume],
        instance_store_gb: None,
        interfaces: vec![],
        network: RateLimit::default(),
        guest: GuestData { hostname: "ip-172-31-0-10".into(), ..GuestData::default() },
    }
}

async fn hear(news: &mut broadcast::Receiver<News>) -> (u64, NewsKind) {
    let heard = tokio::time::timeout(Duration::from_secs(60), news.recv()).await.expect("it is told");
    let News { generation, kind, .. } = heard.unwrap();
    (generation, kind)
}

fn powered_off() -> Ending {
    Ending::Told { exit: Exit::PowerOff, failure: None }
}

#[tokio::test]
async fn a_machine_from_its_start_to_its_end() {
    let Some(site) = Site::new() else { return };
    let (linux, mut news) = site.open("run").await;
    let plan = plan(&linux, 1).await;
    let started = linux.start_machine(&plan).await.unwrap();
    let names: Vec<_> = started.steps.iter().map(|(name, _)| *name).collect();
    let all =
        ["open taps", "open volumes", "make seed", "prepare", "spawn", "load kernel", "first instruction"];
    assert_eq!(names, all);
    assert_eq!(started.steps[5..], [("load kernel", 1000), ("first instruction", 500)]);
    // Again is no error, and no second machine; another generation is one.
    let pid = site.pid(&plan);
    assert_eq!(linux.start_machine(&plan).await.unwrap().steps, []);
    assert_eq!(site.pid(&plan), pid);
    let next = MachinePlan { generation: 5, ..plan.clone() };
    assert!(linux.start_machine(&next).await.unwrap_err().to_string().contains("generation 4"));

    let usage = linux.usage(&plan.instance).await.unwrap();
    assert_eq!((usage.disk_read_bytes, usage.net_sent_bytes), (12, 9));
    linux.throttle(&plan.instance, Throttle::Limited { millicpus: 100 }).await.unwrap();
    assert_eq!(linux.console_output(&plan.instance).await.unwrap(), b"Linux says hello\r\n");
    let mut console = linux.console_stream(&plan.instance).await.unwrap();
    console.write_all(b"hi").await.unwrap();
    let mut seen = [0; 2];
    console.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"HI");

    linux.reboot_machine(&plan.instance, Duration::from_millis(1500)).await.unwrap();
    assert_eq!(hear(&mut news).await, (4, NewsKind::Rebooted));
    assert!(linux.remove_machine(&plan.instance).await.is_err());
    assert!(linux.delete_volume(&plan.volumes[0]).await.is_err());
    linux.press_power_button(&plan.instance).await.unwrap();
    assert_eq!(hear(&mut news).await, (4, NewsKind::Ended(powered_off())));

    for error in [
        linux.press_power_button(&plan.instance).await.unwrap_err(),
        linux.usage(&plan.instance).await.unwrap_err(),
        linux.console_stream(&plan.instance).await.err().unwrap(),
    ] {
        assert!(matches!(error, Error::NotRunning(_)), "{error:?}");
    }
    assert!(linux.start_machine(&next).await.unwrap_err().to_string().contains("still there"));
    for _ in 0..2 {
        linux.kill_machine(&plan.instance).await.unwrap();
        linux.remove_machine(&plan.instance).await.unwrap();
    }
    assert_eq!(site.traces(), Vec::<String>::new());
    assert_eq!(linux.console_output(&plan.instance).await.unwrap(), b"Linux says hello\r\n");
    assert_eq!(linux.inventory().await.unwrap().consoles, std::slice::from_ref(&plan.instance));
    linux.forget_console(&plan.instance).await.unwrap();
    linux.delete_volume(&plan.volumes[0]).await.unwrap();
    let inventory = linux.inventory().await.unwrap();
    assert!(inventory.machines.is_empty() && inventory.volumes.is_empty() && inventory.consoles.is_empty());
}

#[tokio::test]
async fn a_machine_that_does_not_get_to_run_leaves_nothing() {
    let Some(site) = Site::new() else { return };
    let (linux, mut news) = site.open("fail").await;
    let plan = plan(&linux, 1).await;
    let Error::Ended(failure) = linux.start_machine(&plan).await.unwrap_err() else { panic!() };
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::NoKernel, "no kernel"));
    assert_eq!(site.traces(), Vec::<String>::new());
    drop(linux);
    let (linux, _) = site.open("die").await;
    let Error::Ended(failure) = linux.start_machine(&plan).await.unwrap_err() else { panic!() };
    assert!(failure.message.contains("ended before its first instruction"), "{}", failure.message);
    assert_eq!(site.traces(), Vec::<String>::new());
    assert!(news.try_recv().is_err(), "who started it was told");

    let gone = MachinePlan { volumes: vec![VolumeId::from_random(99)], ..plan.clone() };
    assert!(linux.start_machine(&gone).await.unwrap_err().to_string().contains("is gone"));
    std::fs::remove_file(site.path("fake-vmm")).unwrap();
    assert!(linux.start_machine(&plan).await.unwrap_err().to_string().contains("cannot start"));
    assert_eq!(site.traces(), Vec::<String>::new());
    fake::program(site.folder.path());
    // The volume was let go of.
    linux.delete_volume(&plan.volumes[0]).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_is_done_at_once_has_run() {
    let Some(site) = Site::new() else { return };
    let (linux, mut news) = site.open("quick").await;
    let plan = plan(&linux, 1).await;
    linux.start_machine(&plan).await.unwrap();
    assert_eq!(hear(&mut news).await, (4, NewsKind::Ended(powered_off())));
}

#[tokio::test]
async fn a_machine_that_its_sandbox_kills_is_told_as_such() {
    let Some(site) = Site::new() else { return };
    let (linux, mut news) = site.open("forbidden").await;
    let plan = plan(&linux, 1).await;
    linux.start_machine(&plan).await.unwrap();
    let (_, NewsKind::Ended(Ending::Told { exit, failure: Some(failure) })) = hear(&mut news).await else {
        panic!("it has ended, and is told how")
    };
    assert_eq!(exit, Exit::Failed(FailureKind::ForbiddenCall));
    assert!(
        failure.message.starts_with("the machine process was killed by its sandbox: it made"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn the_next_daemon_finds_what_runs() {
    let Some(site) = Site::new() else { return };
    let (linux, _) = site.open("run").await;
    let plan = plan(&linux, 1).await;
    linux.start_machine(&plan).await.unwrap();
    linux.reboot_machine(&plan.instance, Duration::from_millis(1500)).await.unwrap();
    let pid = site.pid(&plan);
    drop(linux);
    // Not even the number is needed: the group knows.
    std::fs::remove_file(site.path(&format!("run/machines/{}/pid", plan.instance))).unwrap();

    let (linux, mut news) = site.open("run").await;
    let found = linux.inventory().await.unwrap().machines;
    assert_eq!(found, [FoundMachine { instance: plan.instance.clone(), generation: 4, ended: None }]);
    // It is the same one, and started no more.
    assert_eq!(linux.start_machine(&plan).await.unwrap().steps, []);
    let groups =
        std::fs::read_to_string(site.lab.0.join(plan.instance.as_str()).join("cgroup.procs")).unwrap();
    assert_eq!(groups.trim(), pid.to_string());
    // What it tells from now on is news; that it was reset is heard once more, as it is asked once more.
    linux.press_power_button(&plan.instance).await.unwrap();
    let heard = loop {
        match hear(&mut news).await {
            (4, NewsKind::Rebooted) => {}
            other => break other,
        }
    };
    assert_eq!(heard, (4, NewsKind::Ended(powered_off())));
    let found = linux.inventory().await.unwrap().machines;
    assert_eq!(found[0].ended, Some(powered_off()));
    linux.remove_machine(&plan.instance).await.unwrap();
}

#[tokio::test]
async fn a_second_daemon_gets_nothing_of_the_first() {
    let Some(site) = Site::new() else { return };
    let (linux, _) = site.open("run").await;
    let plan = plan(&linux, 1).await;
    linux.start_machine(&plan).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let second = || Linux::start(config(other.path(), site.lab.0.clone(), "run"));
    let Err(Error::InUse { path }) = second().await else { panic!("it starts") };
    assert_eq!(path, site.lab.0);
    assert!(!other.path().join("state").exists(), "it has touched nothing");
    // Nor the folder.
    let Some(lab) = Lab::new() else { return };
    let of_first = Linux::start(config(site.folder.path(), lab.0.clone(), "run"));
    let Err(Error::InUse { path }) = of_first.await else { panic!("it starts") };
    assert_eq!(path, site.path("run/machines"));
    assert_eq!(linux.inventory().await.unwrap().machines.len(), 1);
    linux.kill_machine(&plan.instance).await.unwrap();
    linux.remove_machine(&plan.instance).await.unwrap();
    drop(linux);
    assert!(second().await.is_ok());
}

#[tokio::test]
async fn the_next_daemon_learns_how_machines_ended() {
    let Some(site) = Site::new() else { return };
    let (linux, mut news) = site.open("run").await;
    let [one, two, three] = [plan(&linux, 1).await, plan(&linux, 2).await, plan(&linux, 3).await];
    for plan in [&one, &two, &three] {
        linux.start_machine(plan).await.unwrap();
    }
    // One is killed, one powers itself off, of one the folder was lost.
    linux.kill_machine(&one.instance).await.unwrap();
    assert_eq!(hear(&mut news).await, (4, NewsKind::Ended(Ending::Silent)));
    linux.press_power_button(&two.instance).await.unwrap();
    assert_eq!(hear(&mut news).await, (4, NewsKind::Ended(powered_off())));
    drop(linux);
    std::fs::remove_dir_all(site.path(&format!("run/machines/{}", three.instance))).unwrap();

    let (linux, _) = site.open("run").await;
    let mut found = linux.inventory().await.unwrap().machines;
    found.sort_by(|a, b| a.instance.cmp(&b.instance));
    let seen: Vec<_> = found.into_iter().map(|machine| (machine.generation, machine.ended)).collect();
    // Of the third nobody knows what it is: it counts as ended, and is ended when it is removed.
    let expected = [(4, Some(Ending::Silent)), (4, Some(powered_off())), (0, Some(Ending::Silent))];
    assert_eq!(seen, expected);
    for plan in [one, two, three] {
        linux.remove_machine(&plan.instance).await.unwrap();
        linux.delete_volume(&plan.volumes[0]).await.unwrap();
    }
    assert_eq!(site.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_starts_a_machine() {
    let Some(site) = Site::new() else { return };
    let (linux, _) = site.open("late").await;
    let plan = plan(&linux, 1).await;
    // Who waits for the start goes away; the start goes on, in this daemon or in the next.
    let instance = plan.instance.clone();
    let waiting = tokio::time::timeout(Duration::from_millis(300), linux.start_machine(&plan)).await;
    assert!(waiting.is_err());
    drop(linux);
    let (linux, _) = site.open("late").await;
    let found = linux.inventory().await.unwrap().machines;
    assert_eq!(found, [FoundMachine { instance: instance.clone(), generation: 4, ended: None }]);
    std::fs::write(site.path("go"), "").unwrap();
    linux.start_machine(&plan).await.unwrap();
    linux.kill_machine(&instance).await.unwrap();
    linux.remove_machine(&instance).await.unwrap();

    // Killed before the process was, or before it knew what to be: only a plan is left, or not even that.
    let folder = site.path(&format!("run/machines/{instance}"));
    std::fs::create_dir(&folder).unwrap();
    for (plan_text, generation) in
        [("", 0), (&*format!("{{\"instance\":\"{instance}\",\"generation\":6}}"), 6)]
    {
        std::fs::write(folder.join("plan"), plan_text).unwrap();
        let found = linux.inventory().await.unwrap().machines;
        let expected = FoundMachine { instance: instance.clone(), generation, ended: Some(Ending::Silent) };
        assert_eq!(found, [expected]);
    }
    linux.remove_machine(&instance).await.unwrap();
    assert_eq!(site.traces(), Vec::<String>::new());
}
