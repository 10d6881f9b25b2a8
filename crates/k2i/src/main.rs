//! `k2i`: the process table of this host over HTTP(S), on its own.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr as _;
use std::sync::Arc;

use clap::Parser;
use k2i::http::serve::{Bound, Listen, StopSignals, check_exposure, runtime, tick};
use k2i::http::tls::{TlsFiles, load};
use k2i::http::{Api, router};
use k2i::{CollectorChoice, Engine, EngineConfig, host};
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
      Serve a Unix socket that only this user may open";

/// Serve the process table of this host over HTTP
///
/// / lists the addresses that it answers; /v2/columns what a process has. The table is read in the
/// fastest way that this kernel and our rights allow; /v2/host says which and why.
#[derive(Parser)]
#[command(name = "k2i", version, after_help = EXAMPLES)]
struct Options {
    /// Where to listen: IP:PORT, or unix:PATH; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: Listen,
    /// How to read the process table: auto, iter.s, iter or proc
    #[arg(long, value_name = "NAME", default_value = "auto")]
    collector: CollectorChoice,
    /// Serve HTTPS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let other machines ask without TLS
    #[arg(long)]
    insecure: bool,
    /// Name of this host in answers; the kernel's by default
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Name of this data centre in answers
    #[arg(long, value_name = "NAME", default_value = "local")]
    dc: String,
    /// What to log on standard error: error, warn, info, debug, or a filter such as k2i=debug
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = EnvFilter::from_str)]
    log: EnvFilter,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut sources = vec![error.to_string()];
            let mut source = error.source();
            while let Some(error) = source {
                sources.push(error.to_string());
                source = error.source();
            }
            let _ = writeln!(std::io::stderr(), "k2i: {}", sources.join(": "));
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
    let files = options.tls_cert.zip(options.tls_key).map(|(cert, key)| TlsFiles { cert, key });
    if let (Listen::Tcp(address), false) = (&options.listen, options.insecure) {
        check_exposure(*address, files.is_some())?;
    }
    let tls = files.as_ref().map(load).transpose()?;
    let engine = Arc::new(Engine::open(EngineConfig {
        collector: options.collector,
        dc: options.dc,
        host: options.host.unwrap_or_else(host::host_name),
    })?);
    let collector = engine.rungs().iter().find(|rung| rung.chosen);
    let collector = collector.map_or("none", |rung| rung.collector.as_str()).to_owned();

    let runtime = runtime(1)?;
    runtime.block_on(async {
        let mut signals = StopSignals::listen()?;
        let bound = match &options.listen {
            Listen::Tcp(address) => Bound::tcp(*address, tls)?,
            Listen::Unix(path) => Bound::unix(path)?,
        };
        // Whoever started us with port 0 waits for this line.
        let mut out = std::io::stdout();
        writeln!(out, "k2i listens on {} (collector {collector})", bound.url())?;
        out.flush()?;
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(tick(Arc::clone(&engine)));
        let serving = tokio::spawn(bound.serve(router(Api::new(engine)), stopping));
        let name = signals.next().await;
        tracing::info!("{name}: stopping");
        let _ = stop.send(true);
        serving.await?;
        Ok(())
    })
}
