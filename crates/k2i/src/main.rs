//! `k2i`: the process table of this host over HTTP(S), on its own.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr as _;
use std::sync::Arc;

use clap::Parser;
use k2i::http::serve::{Bound, Listen, StopSignals, check_exposure, runtime, tick};
use k2i::http::tls::load;
use k2i::http::{Access, Api, router};
use k2i::options::ServeOptions;
use k2i::token::TokenFile;
use k2i::{Engine, chain};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  k2i
      Serve on 127.0.0.1:8000, to this machine only
  curl 'http://127.0.0.1:8000/v2/proc?columns=pid,user,cpu,cmdline&sort=-cpu&limit=20'
      The 20 processes that use the CPU most
  curl -G http://127.0.0.1:8000/v2/proc --data-urlencode 'filter=rss > 100*MiB && user == \"www-data\"'
      Large processes of one user
  k2i --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem
      Serve other machines, over HTTPS
  k2i --listen unix:/run/k2i.sock
      Serve a Unix socket that only this user may open; with --socket-mode 0666 everybody on this host";

/// Serve the process table of this host over HTTP
///
/// / lists the addresses that it answers; /v2/columns what a process has. The table is read in the
/// fastest way that this kernel and our rights allow; /v2/host says which and why.
///
/// On 127.0.0.1 every user of this machine can look, and sees command lines without secrets: a k2i that
/// root runs tells him executables, directories, namespaces, capabilities and I/O of all processes,
/// which the kernel shows only to those who may trace them. --anonymous never wants a token of everybody,
/// as is so on addresses that other machines reach; --listen unix:PATH serves one user alone.
#[derive(Parser)]
#[command(name = "k2i", version, after_help = EXAMPLES)]
struct Options {
    /// Where to listen: IP:PORT, or unix:PATH; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: Listen,
    #[command(flatten)]
    serve: ServeOptions,
    /// Let those in who show a token of this file; `kumo rights token add NAME --file FILE` makes them
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Write who changed what into this file, a line of JSON each
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// What to log on standard error: error, warn, info, debug, or a filter such as k2i=debug
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = EnvFilter::from_str)]
    log: EnvFilter,
}

fn main() -> ExitCode {
    kumo_sys::memory::share_areas();
    let options = Options::parse();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "k2i: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(options.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let files = options.serve.tls();
    if let (Listen::Tcp(address), false) = (&options.listen, options.serve.insecure) {
        check_exposure(*address, files.is_some())?;
    }
    let tls = files.as_ref().map(load).transpose()?;
    let engine = Arc::new(Engine::open(options.serve.engine())?);
    engine.group_metrics(options.serve.grouping());
    engine.take_events(options.serve.events);
    if let Some(config) = options.serve.history.config(None) {
        engine.keep_history(config);
    }
    let collector = engine.rungs().into_iter().find(|rung| rung.chosen);
    let collector = collector.map_or_else(String::new, |rung| rung.collector);

    let mut access = Access::default()
        .with_users(options.serve.users())
        .with_anonymous(options.serve.anonymous)
        .with_lines(options.serve.redact.lines());
    if let Some(path) = &options.tokens {
        let file = TokenFile::at(path);
        // What is wrong with it is better said now than to the first who shows a token.
        file.read()?;
        access = access.with_tokens(Arc::new(file));
    }
    if let Some(path) = &options.audit {
        access = access.with_audit(path);
    }

    let runtime = runtime(1)?;
    runtime.block_on(async {
        let mut signals = StopSignals::listen()?;
        let bound = match &options.listen {
            Listen::Tcp(address) => Bound::tcp(*address, tls)?,
            Listen::Unix(path) => Bound::unix(path, options.serve.socket_mode)?,
        };
        // Whoever started us with port 0 waits for this line.
        let mut out = std::io::stdout();
        writeln!(out, "k2i listens on {} (collector {collector})", bound.url())?;
        out.flush()?;
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(tick(Arc::clone(&engine)));
        let api = Api::open_to(engine, Arc::new(access));
        let serving = tokio::spawn(bound.serve(router(api), stopping));
        let name = signals.next().await;
        tracing::info!("{name}: stopping");
        let _ = stop.send(true);
        serving.await?;
        Ok(())
    })
}
