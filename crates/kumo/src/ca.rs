//! `kumo ca`: the key of the cluster's authority, to a safe and back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, read};
use crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use kumo_abi::cluster::Role;
use kumo_abi::{DcName, HostName};
use kumo_fabric::identity::{Identity, IdentityError, load_authority, save_authority};
use kumo_fabric::pki::Authority;
use kumo_fabric::sealed::{self, SEALED_BYTES_MAX};

use crate::error::CommandError;
use crate::exit::Exit;
use crate::init::{found, say_where};
use crate::membership::{About, MembershipError, Place, Reopened, next_steps};
use crate::output::Output;
use crate::text;

/// What `kumo ca --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  kumo ca export acme.authority             on a gateway; asks for a passphrase
  kumo ca import acme.authority             on a gateway that lost its key
  kumo ca import acme.authority --dc tokyo --host gw-1
                                            when all gateways are lost: a new first one";

/// Longest line of a passphrase file.
const PASSPHRASE_BYTES_MAX: u64 = 4096;

/// Keep the key of the cluster's authority in a safe, and bring it back
#[derive(Debug, clap::Args)]
pub struct Ca {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write the authority's key to a file, sealed by a passphrase
    Export(Export),
    /// Bring the authority's key from a file to this gateway
    ///
    /// Where this host is in no cluster, it becomes a gateway of the authority's: the first of a
    /// cluster that has lost all others.
    Import(Box<Import>),
}

#[derive(Debug, clap::Args)]
struct Export {
    /// The file to write
    file: PathBuf,
    /// Read the passphrase from the first line of this file, instead of the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct Import {
    /// The file that `kumo ca export` wrote
    file: PathBuf,
    /// Read the passphrase from the first line of this file, instead of the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Write over a key that is there
    #[arg(long)]
    force: bool,
    /// The data centre of the new gateway
    #[arg(long, value_name = "NAME")]
    dc: Option<DcName>,
    /// The name of the new gateway; by default the kernel's
    #[arg(long, value_name = "NAME", requires = "dc")]
    host: Option<HostName>,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    place: Place,
}

/// Does either.
///
/// # Errors
/// See [`MembershipError`]; no file is changed then.
pub fn run(args: &Ca, out: &mut Output) -> Result<Exit, CommandError> {
    match &args.command {
        Command::Export(args) => export(args, out),
        Command::Import(args) => import(args, out),
    }
}

fn export(args: &Export, out: &mut Output) -> Result<Exit, CommandError> {
    let dir = args.place.fabric_dir();
    let identity = Identity::load(&dir).map_err(MembershipError::from)?;
    let identity = identity.ok_or(MembershipError::Identity(IdentityError::Alone))?;
    let authority = load_authority(&dir).map_err(MembershipError::from)?.ok_or_else(|| {
        let Identity { host, role, .. } = &identity;
        let role = role.name();
        MembershipError::Refused(format!(
            "{host} is a {role} without the authority's key; do it on another gateway"
        ))
    })?;
    if !args.force && fs::symlink_metadata(&args.file).is_ok() {
        return Err(there(&args.file).into());
    }
    let passphrase = passphrase(args.passphrase_file.as_deref(), Ask::Twice)?;
    let sealing = sealed::seal(&authority, &passphrase);
    let sealed =
        sealing.map_err(|source| MembershipError::Sealed { path: args.file.clone(), source })?;
    write(&args.file, &sealed, args.force)?;
    let file = text::visible(&args.file.to_string_lossy()).into_owned();
    out.line(format_args!(
        "kumo: the authority of `{}` is in {file}, sealed",
        authority.cluster()
    ))?;
    out.line("  who has it and the passphrase can make hosts of this cluster; keep them apart")?;
    Ok(Exit::Done)
}

fn import(args: &Import, out: &mut Output) -> Result<Exit, CommandError> {
    let dir = args.place.fabric_dir();
    let identity = Identity::load(&dir).map_err(MembershipError::from)?;
    match &identity {
        Some(Identity { host, cluster, .. }) if args.dc.is_some() => {
            let (host, cluster) = (host.clone(), cluster.clone());
            return Err(MembershipError::from(IdentityError::Member { host, cluster }).into());
        }
        Some(Identity { role: Role::Member, host, .. }) => {
            let said = format!("{host} is a member, and only gateways keep the authority's key");
            return Err(MembershipError::Refused(said).into());
        }
        Some(_) if !args.force && dir.join("ca.key").exists() => {
            let said = "this gateway has the authority's key already; --force writes over it";
            return Err(MembershipError::Refused(said.to_owned()).into());
        }
        None if args.dc.is_none() => {
            let said = "this host is in no cluster; with --dc (and --host) it becomes a gateway of the authority's";
            return Err(CommandError::Usage(said.to_owned()));
        }
        _ => {}
    }
    let failed = |source| MembershipError::File { what: "read", path: args.file.clone(), source };
    let sealed = read_text(&args.file, SEALED_BYTES_MAX as u64 + 1).map_err(failed)?;
    let passphrase = passphrase(args.passphrase_file.as_deref(), Ask::Once)?;
    let opened = sealed::open(&sealed, &passphrase);
    let authority =
        opened.map_err(|source| MembershipError::Sealed { path: args.file.clone(), source })?;
    let identity = match (identity, &args.dc) {
        (Some(identity), _) => {
            bring_back(&identity, &authority, args, out)?;
            identity
        }
        (None, Some(dc)) => {
            let identity = found(&authority, dc, args.host.as_ref(), &args.about, &args.place)?;
            let (host, cluster) = (&identity.host, &identity.cluster);
            out.line(format_args!(
                "kumo: this host is the gateway {host} of the cluster `{cluster}` now"
            ))?;
            say_where(&identity, &args.place, out)?;
            identity
        }
        (None, None) => unreachable!("refused above"),
    };
    let reopened = args.place.reopen(Some(&identity), out)?;
    if reopened == Reopened::NoNode {
        next_steps(out, &[format!("kumo up{}", args.place.options())])?;
    }
    Ok(reopened.exit())
}

fn bring_back(
    identity: &Identity,
    authority: &Authority,
    args: &Import,
    out: &mut Output,
) -> Result<(), CommandError> {
    if *authority.certificate() != identity.ca {
        let said = format!(
            "the file holds another authority (it is of `{}`) than that of this host's cluster `{}`",
            authority.cluster(),
            identity.cluster
        );
        return Err(MembershipError::Refused(said).into());
    }
    save_authority(&args.place.fabric_dir(), authority).map_err(MembershipError::from)?;
    let (host, cluster) = (&identity.host, &identity.cluster);
    out.line(format_args!("kumo: {host} can issue certificates for the cluster `{cluster}` now"))?;
    Ok(())
}

fn there(file: &Path) -> MembershipError {
    let file = text::visible(&file.to_string_lossy()).into_owned();
    MembershipError::Refused(format!("{file} is there already; --force writes over it"))
}

/// Writes a file that only its owner can read, on the disk when this returns.
fn write(path: &Path, text: &str, over: bool) -> Result<(), MembershipError> {
    let failed = |source| MembershipError::File { what: "write", path: path.to_owned(), source };
    let new = if over { aside(path) } else { path.to_owned() };
    let write = || {
        if over {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let written = written.and_then(|()| if over { fs::rename(&new, path) } else { Ok(()) });
        // Half of a seal is worth nothing, and would only be in the way.
        written.inspect_err(|_| drop(fs::remove_file(&new)))
    };
    match write() {
        Err(error) if !over && error.kind() == io::ErrorKind::AlreadyExists => Err(there(path)),
        result => result.map_err(failed),
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(bytes_max).read_to_string(&mut text)?;
    Ok(text)
}

/// How often to ask for a passphrase: twice for a new one, so that nobody seals with a slip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Once,
    Twice,
}

fn passphrase(file: Option<&Path>, ask: Ask) -> Result<String, MembershipError> {
    if let Some(path) = file {
        let failed = |source| MembershipError::File { what: "read", path: path.to_owned(), source };
        let text = read_text(path, PASSPHRASE_BYTES_MAX).map_err(failed)?;
        return Ok(text.lines().next().unwrap_or_default().to_owned());
    }
    let what = "ask for a passphrase; without a terminal give it with --passphrase-file";
    let failed = |source| MembershipError::System { what, source };
    let first = prompt("Passphrase: ").map_err(failed)?;
    if ask == Ask::Twice && prompt("The same again: ").map_err(failed)? != first {
        return Err(MembershipError::Refused("the two passphrases differ".to_owned()));
    }
    Ok(first)
}

/// Gives the terminal back as it was.
struct Raw;

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing better to do about a terminal that fails.
        disable_raw_mode().ok();
        eprintln!();
    }
}

/// Asks for a line on the terminal, and shows nothing of it.
fn prompt(what: &str) -> io::Result<String> {
    eprint!("{what}");
    enable_raw_mode()?;
    let _raw = Raw;
    let mut line = String::new();
    loop {
        let Event::Key(KeyEvent { code, modifiers, kind, .. }) = read()? else { continue };
        if kind == KeyEventKind::Release {
            continue;
        }
        let control = modifiers.contains(KeyModifiers::CONTROL);
        match code {
            KeyCode::Enter => return Ok(line),
            KeyCode::Char('c' | 'd') if control => return Err(io::ErrorKind::Interrupted.into()),
            KeyCode::Char('u') if control => line.clear(),
            KeyCode::Char(c) if !control => line.push(c),
            KeyCode::Backspace => drop(line.pop()),
            _ => {}
        }
    }
}
