//! The host that machines run on, as the command line has it.

use std::{env, path::Path, sync::Arc};

use ec2vmm_host::{
    Explained, capacity,
    host::Host,
    linux::{self, Linux, network},
    machine,
    simulated::{Settings, Simulated},
};

use crate::{
    args::{Args, HostKind},
    refusal::Refusal,
};

/// What can be seen to be missing before anything is touched.
pub(crate) fn check(args: &Args) -> Result<(), Refusal> {
    if args.host == HostKind::Simulated {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Refusal::NotRoot);
    }
    let above = args.cgroup.parent().unwrap_or(&args.cgroup);
    if !above.join(CGROUP2_CONTROLLERS).exists() {
        return Err(Refusal::NoCgroup2 { path: above.to_owned() });
    }
    capacity::open_kvm(Path::new(KVM)).map_err(lacks)?;
    if !args.emulated_kvm {
        capacity::check_hardware_virtualization().map_err(lacks)?;
    }
    Ok(())
}

/// The host.
pub(crate) async fn open(args: &Args) -> Result<Arc<dyn Host>, Refusal> {
    match args.host {
        HostKind::Simulated => Ok(Arc::new(Simulated::new(Settings::default()))),
        HostKind::Linux => Ok(Arc::new(Linux::start(config(args)?).await.map_err(Refusal::Host)?)),
    }
}

fn config(args: &Args) -> Result<linux::Config, Refusal> {
    let program = match args.vmm.clone().or_else(|| env::var_os(VMM).map(Into::into)) {
        Some(program) => program,
        None => machine::find_program(env::var_os("PATH").as_deref()).map_err(lacks)?,
    };
    let program = std::path::absolute(&program).unwrap_or(program);
    let variables = env::var(VMM_LOG).map(|level| vec![(VMM_LOG.to_owned(), level)]).unwrap_or_default();
    Ok(linux::Config {
        state_dir: args.state_dir.clone(),
        run_dir: args.run_dir.clone(),
        cgroup: args.cgroup.clone(),
        limits: !args.no_limits,
        program,
        program_variables: variables,
        sandbox: args.sandbox,
        ids: args.machine_ids.clone(),
        kvm_device: KVM.into(),
        emulated_kvm: args.emulated_kvm,
        network: Some(network::Config {
            prefix: args.network_names.clone(),
            domain: ec2vmm_rest::domain(&args.region),
            reach_host: args.reach_host,
            ..network::Config::default()
        }),
    })
}

fn lacks(error: impl Explained + Send + Sync + 'static) -> Refusal {
    Refusal::Lacks { hint: error.hint(), source: Box::new(error) }
}

const KVM: &str = "/dev/kvm";
/// In every control group of version 2, and of no other.
const CGROUP2_CONTROLLERS: &str = "cgroup.controllers";
/// Names the program of machine processes, as for `ec2vmm run`.
const VMM: &str = "EC2VMM_VMM";
/// What machine processes log.
const VMM_LOG: &str = "EC2VMM_LOG";
