//! The daemon's life: take, serve, finish.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use ec2vmm_cloud::{Clock, Cloud, SystemClock};
use ec2vmm_rest::{About, End, Limits, Rest, Server};
use ec2vmm_store::Store;

use crate::{
    args::Args,
    descriptors, host,
    listener::Listener,
    refusal::Refusal,
    service,
    signals::{Signals, Wish},
    upgrade::{Program, Upgrade},
};

/// How it ended.
pub(crate) enum Outcome {
    /// As asked.
    Stopped,
    /// Another program is to go on.
    Upgrade(Upgrade),
}

/// Lives until it is told to end.
pub(crate) async fn live(args: &Args) -> Result<Outcome, Refusal> {
    // First of all, so that no signal ends the process half-way.
    let mut signals = Signals::new().map_err(|source| Refusal::Runtime { source })?;
    let program = Program::of_this_process().map_err(|source| Refusal::Runtime { source })?;
    let connections = descriptors::raise();
    host::check(args)?;
    let scratch = args.state_dir.join("scratch");
    make_folders(args, &scratch)?;
    let store = Store::open(&args.state_dir.join("ec2vmm.db"))?;
    // Only who has the store may touch what is shared: the socket and the host.
    empty(&scratch)?;
    let listener = Listener::take(&args.socket())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let started = clock.now();
    let host = host::open(args).await?;
    let cloud = Cloud::start(store, host, Arc::clone(&clock), args.cloud()).await?;
    let about =
        About { version: env!("CARGO_PKG_VERSION").to_owned(), host: args.host.name().to_owned(), started };
    let (end, ending) = End::new();
    let rest = Rest::new(cloud.clone(), clock, about, scratch, ending);
    let limits = Limits { connections, ..Limits::default() };
    let socket_failed = |source| Refusal::Socket { path: args.socket(), source };
    let socket = listener.socket.try_clone().map_err(socket_failed)?;
    let server = Server::new(socket, rest, limits).map_err(socket_failed)?;
    let mut serving = tokio::spawn(server.serve());
    let watchdog = tokio::spawn(service::watchdog(cloud.clone()));
    service::ready();
    tracing::info!(socket = %args.socket().display(), host = args.host.name(), connections, "ready");

    let wish = wish(&mut signals, &program).await;
    tracing::info!(?wish, "ending: requests under way are finished, machines run on");
    end.come();
    tokio::select! {
        ended = &mut serving => if let Err(error) = ended {
            tracing::error!(%error, "the server ended by a panic");
        },
        () = told_to_stop(&mut signals) => {
            tracing::warn!("told to stop once more: requests under way are broken off");
            serving.abort();
        }
    }
    watchdog.abort();
    cloud.shut_down().await;
    drop(cloud);
    Ok(match wish {
        Wish::Stop => {
            listener.remove();
            Outcome::Stopped
        }
        Wish::Upgrade => {
            let ours = listener.ours.is_some();
            Outcome::Upgrade(Upgrade::new(program, listener.socket, ours))
        }
    })
}

/// What the daemon is told to do, once it can be done.
async fn wish(signals: &mut Signals, program: &Program) -> Wish {
    loop {
        match signals.next().await {
            Wish::Stop => {
                service::stopping();
                return Wish::Stop;
            }
            Wish::Upgrade => match program.check().await {
                Ok(()) => {
                    service::reloading();
                    return Wish::Upgrade;
                }
                Err(reason) => tracing::error!(reason, "no upgrade: this program goes on"),
            },
        }
    }
}

/// Returns when the end is asked for, however often an upgrade is.
async fn told_to_stop(signals: &mut Signals) {
    while signals.next().await != Wish::Stop {}
}

fn make_folders(args: &Args, scratch: &Path) -> Result<(), Refusal> {
    // Whoever can read the state can read people's disks and keys; sockets have modes of their own.
    for (path, mode) in [(args.state_dir.as_path(), 0o700), (args.run_dir.as_path(), 0o755), (scratch, 0o700)]
    {
        let failed = |source| Refusal::Folder { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
        let folder = fs::metadata(path).map_err(failed)?;
        if !folder.is_dir() {
            return Err(failed(std::io::ErrorKind::NotADirectory.into()));
        }
        if folder.permissions().mode() & 0o022 != 0 {
            tracing::warn!(path = %path.display(), "others can write to this folder");
        }
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// Copies that a daemon which was killed has left.
fn empty(scratch: &Path) -> Result<(), Refusal> {
    let failed = |source| Refusal::Folder { path: scratch.to_owned(), source };
    for entry in fs::read_dir(scratch).map_err(failed)? {
        fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
    }
    Ok(())
}

/// How long threads may take that were asked to end.
pub(crate) const LEFTOVERS_TIME_MAX: Duration = Duration::from_secs(10);
