//! Kernel parameters of this host: `/proc/sys`, read and written one at a time.
//!
//! Who may write what, when a value is taken back and what is written down about it is the business of
//! the node; here is what the kernel takes and gives. Parameters below `net` are those of the network
//! namespace of the thread that asks. What is mounted below `/proc/sys` is left alone: it is no
//! parameter, and systemd mounts `fs/binfmt_misc` when somebody looks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kumo_abi::sysctl::{Parameter, ParameterName, Pattern, VALUE_READ_BYTES_MAX};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Where they are.
const ROOT: &str = "/proc/sys";

/// The one directory in it that is another file system.
const MOUNTED: &str = "fs/binfmt_misc";

/// Most parameters of one answer: a host has some 1,300, and 130 more for each network interface.
pub const PARAMETERS_MAX: usize = 50_000;

/// Most bytes of values of one answer.
pub const VALUES_BYTES_MAX: usize = 16 << 20;

/// Deepest directory. The kernel's own trees have six levels.
const DEPTH_MAX: usize = 16;

/// Room for a value at first. A longer one is read again as a whole, so that it is of one moment.
const VALUE_BYTES_AT_FIRST: usize = 4096;

/// Why a parameter is not read or written. Nothing was written then, but for what
/// [`SysctlError::Cut`] says.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// There is none of this name.
    #[error(
        "there is no kernel parameter `{}` on this host; `kumo sysctl get PATTERN` lists those there are",
        .0.to_string().escape_debug()
    )]
    NoSuch(ParameterName),
    /// A directory.
    #[error(
        "`{name}` is a group of parameters; `kumo sysctl get {name}` lists them, and one is changed at a \
         time", name = .0.to_string().escape_debug()
    )]
    Group(ParameterName),
    /// No parameter, though it lies there.
    #[error(
        "`{}` is no kernel parameter: another file system is mounted there", .0.to_string().escape_debug()
    )]
    Mounted(ParameterName),
    /// It cannot be read, by its mode.
    #[error(
        "`{}` can be written only: it is no value but a way to make the kernel do something",
        .0.to_string().escape_debug()
    )]
    WriteOnly(ParameterName),
    /// We may not.
    #[error(
        "the kernel does not let this node {what} `{}`; it runs as user {user}, maybe without the \
         capability, and what is not of its own user namespace is out of its reach",
        name.to_string().escape_debug()
    )]
    Denied {
        /// Which.
        name: ParameterName,
        /// `read` or `write`.
        what: &'static str,
        /// As whom we run.
        user: u32,
    },
    /// All of it.
    #[error(
        "/proc/sys cannot be written here: it is mounted read-only, as containers have it; run the \
         node on the host itself"
    )]
    ReadOnly,
    /// The kernel does not take this value.
    #[error("the kernel does not take this value for `{}`: {source}", name.to_string().escape_debug())]
    Invalid {
        /// For which.
        name: ParameterName,
        /// Its words.
        source: io::Error,
    },
    /// Only a part of the value was taken.
    #[error(
        "the kernel took only {taken} of {len} bytes of the value for `{}`; look at what it is now",
        name.to_string().escape_debug()
    )]
    Cut {
        /// For which.
        name: ParameterName,
        /// So many.
        taken: usize,
        /// Of so many.
        len: usize,
    },
    /// The value is no text, or far too long.
    #[error("the value of `{}` is {why}", name.to_string().escape_debug())]
    Strange {
        /// Of which.
        name: ParameterName,
        /// Why.
        why: &'static str,
    },
    /// There are more than one answer holds.
    #[error(
        "more than {PARAMETERS_MAX} parameters match, or their values have more than {} MiB; ask for fewer, \
         as with net.ipv4.conf.all", VALUES_BYTES_MAX >> 20
    )]
    TooMany,
    /// Anything else.
    #[error("cannot {what} `{}`", name.to_string().escape_debug())]
    Kernel {
        /// Which.
        name: ParameterName,
        /// `read` or `write`.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not even the tree.
    #[error("cannot read /proc/sys")]
    Tree(#[source] io::Error),
}

/// A parameter that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its text, without the line end.
    pub text: String,
    /// Whether the kernel lets its owner write it.
    pub writable: bool,
    /// Whether the kernel shows it to its owner alone.
    pub private: bool,
}

/// The number of the network namespace whose parameters this thread sees; 0 where that is not known.
pub fn network_namespace() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |found| found.ino())
}

/// Reads one parameter.
///
/// # Errors
/// See [`SysctlError`].
pub fn read(name: &ParameterName) -> Result<Value, SysctlError> {
    let (mut file, mode) = open(name, "read", OFlags::RDONLY)?;
    let bytes = whole(&mut file).map_err(|error| failed(name, "read", error))?;
    let strange = |why| SysctlError::Strange { name: name.clone(), why };
    let bytes = bytes.ok_or_else(|| strange("longer than any that is known"))?;
    let text = String::from_utf8(bytes).map_err(|_| strange("no text"))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line).to_owned();
    if text.contains('\0') {
        return Err(strange("no text"));
    }
    Ok(Value { text, writable: is_writable(mode), private: is_private(mode) })
}

/// Writes one parameter, as one line in one piece. What became of it is to be read: the kernel may
/// understand it in its own way.
///
/// # Errors
/// See [`SysctlError`].
pub fn write(name: &ParameterName, text: &str) -> Result<(), SysctlError> {
    let (mut file, _) = open(name, "write", OFlags::WRONLY)?;
    let line = format!("{text}\n");
    match file.write(line.as_bytes()) {
        // Without the line end it is whole, too.
        Ok(taken) if taken >= text.len() => Ok(()),
        Ok(taken) => Err(SysctlError::Cut { name: name.clone(), taken, len: text.len() }),
        Err(error) => Err(failed(name, "write", error)),
    }
}

/// All parameters that are meant, in the order of their names. Values that the kernel shows to their
/// owner alone are left out unless `with_private`.
///
/// # Errors
/// `TooMany`, or the tree cannot be read at all. What is wrong with one is said of that one.
pub fn list(pattern: Option<&Pattern>, with_private: bool) -> Result<Vec<Parameter>, SysctlError> {
    let root = Path::new(ROOT);
    let device = fs::metadata(root).map_err(SysctlError::Tree)?.dev();
    let mut found = Found { pattern, with_private, device, bytes: 0, parameters: Vec::new() };
    found.walk(root, "", 0)?;
    found.parameters.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found.parameters)
}

struct Found<'a> {
    pattern: Option<&'a Pattern>,
    with_private: bool,
    device: u64,
    bytes: usize,
    parameters: Vec<Parameter>,
}

impl Found<'_> {
    fn walk(&mut self, directory: &Path, path: &str, depth: usize) -> Result<(), SysctlError> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(SysctlError::Tree(error)),
            // Gone since it was seen, as the interface it was of.
            Err(_) => return Ok(()),
        };
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let piece = file_name.to_string_lossy();
            let path = if path.is_empty() { piece.into_owned() } else { format!("{path}/{piece}") };
            let Ok(kind) = entry.file_type() else { continue };
            // Every name that the kernel makes is one; who it is of chose a piece of it.
            let Ok(name) = ParameterName::from_path(&path) else { continue };
            if kind.is_dir() {
                let is_wanted = self.pattern.is_none_or(|it| it.may_match_below(&name));
                if is_wanted && path != MOUNTED && depth < DEPTH_MAX {
                    self.walk(&entry.path(), &path, depth + 1)?;
                }
                continue;
            }
            if !self.pattern.is_none_or(|pattern| pattern.matches(&name)) {
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if !metadata.is_file() || metadata.dev() != self.device {
                continue;
            }
            let is_named = file_name.to_str().is_some();
            if let Some(parameter) = self.parameter(&name, metadata.mode(), is_named) {
                self.bytes += parameter.value.as_ref().map_or(0, String::len);
                self.parameters.push(parameter);
            }
            if self.parameters.len() > PARAMETERS_MAX || self.bytes > VALUES_BYTES_MAX {
                return Err(SysctlError::TooMany);
            }
        }
        Ok(())
    }

    /// `None` where it is gone meanwhile.
    fn parameter(&self, name: &ParameterName, mode: u32, is_named: bool) -> Option<Parameter> {
        let read = if !is_named {
            Err("its name is no text".to_owned())
        } else if mode & 0o444 == 0 {
            Err("it can be written only".to_owned())
        } else if is_private(mode) && !self.with_private {
            Err("it is shown only to who may write kernel parameters".to_owned())
        } else {
            match read(name) {
                Ok(value) => Ok(value.text),
                Err(SysctlError::NoSuch(_)) => return None,
                Err(error) => Err(crate::chain(&error)),
            }
        };
        let (value, unread) = match read {
            Ok(text) => (Some(text), None),
            Err(why) => (None, Some(why)),
        };
        Some(Parameter { name: name.to_string(), value, writable: is_writable(mode), unread })
    }
}

/// Whether a mode lets the owner write; rights beyond that are the kernel's to check.
fn is_writable(mode: u32) -> bool {
    mode & 0o200 != 0
}

fn is_private(mode: u32) -> bool {
    mode & 0o004 == 0
}

/// Opens the file of a parameter, and nothing else.
fn open(
    name: &ParameterName,
    what: &'static str,
    access: OFlags,
) -> Result<(File, u32), SysctlError> {
    let path = name.path();
    if path == MOUNTED || path.strip_prefix(MOUNTED).is_some_and(|rest| rest.starts_with('/')) {
        return Err(SysctlError::Mounted(name.clone()));
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.read(access == OFlags::RDONLY).write(access == OFlags::WRONLY);
    options.custom_flags(flags.bits() as i32);
    let full: PathBuf = Path::new(ROOT).join(path);
    let file = options.open(&full).map_err(|error| {
        let mode = fs::metadata(&full).map(|found| found.mode());
        match (failed(name, what, error), mode) {
            (SysctlError::Denied { name, what: "read", .. }, Ok(mode)) if mode & 0o444 == 0 => {
                SysctlError::WriteOnly(name)
            }
            (error, _) => error,
        }
    })?;
    let found = file.metadata().map_err(|error| failed(name, what, error))?;
    if found.is_dir() {
        return Err(SysctlError::Group(name.clone()));
    }
    let device = fs::metadata(ROOT).map_err(SysctlError::Tree)?.dev();
    if !found.is_file() || found.dev() != device {
        return Err(SysctlError::Mounted(name.clone()));
    }
    Ok((file, found.mode()))
}

fn failed(name: &ParameterName, what: &'static str, source: io::Error) -> SysctlError {
    let name = name.clone();
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::NODEV) => {
            SysctlError::NoSuch(name)
        }
        Some(Errno::ISDIR) => SysctlError::Group(name),
        Some(Errno::ACCESS | Errno::PERM) => {
            SysctlError::Denied { name, what, user: rustix::process::geteuid().as_raw() }
        }
        Some(Errno::ROFS) => SysctlError::ReadOnly,
        Some(Errno::INVAL | Errno::RANGE | Errno::DOM | Errno::OVERFLOW) if what == "write" => {
            SysctlError::Invalid { name, source }
        }
        _ => SysctlError::Kernel { name, what, source },
    }
}

/// All of a file in one read, as it is at that moment; `None` where it is too long.
fn whole(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; VALUE_BYTES_AT_FIRST];
    let len = file.read(&mut bytes)?;
    if len < bytes.len() {
        bytes.truncate(len);
        return Ok(Some(bytes));
    }
    bytes = vec![0; VALUE_READ_BYTES_MAX + 1];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok((len <= VALUE_READ_BYTES_MAX).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ParameterName {
        text.parse().expect(text)
    }

    #[test]
    fn values_are_those_that_the_kernel_gives() {
        for text in ["kernel.ostype", "vm.swappiness", "kernel.printk", "net.ipv4.tcp_rmem"] {
            let name = name(text);
            let file = fs::read_to_string(Path::new(ROOT).join(name.path())).expect(text);
            let value = read(&name).expect(text);
            assert_eq!(format!("{}\n", value.text), file, "{text}");
            assert_eq!(value.writable, text != "kernel.ostype", "{text}");
            assert!(!value.private, "{text}");
        }
        assert!(read(&name("net.ipv4.tcp_rmem")).expect("it is there").text.contains('\t'));
    }

    #[test]
    fn what_is_no_value_says_why() {
        assert!(matches!(read(&name("vm.nonsense")), Err(SysctlError::NoSuch(_))));
        assert!(matches!(read(&name("vm.swappiness.x")), Err(SysctlError::NoSuch(_))));
        assert!(matches!(read(&name("net.ipv4")), Err(SysctlError::Group(_))));
        assert!(matches!(write(&name("net.ipv4"), "1"), Err(SysctlError::Group(_))));
        for mounted in ["fs.binfmt_misc", "fs.binfmt_misc.register", "fs/binfmt_misc/status"] {
            assert!(matches!(read(&name(mounted)), Err(SysctlError::Mounted(_))), "{mounted}");
            assert!(matches!(write(&name(mounted), "x"), Err(SysctlError::Mounted(_))));
        }
        if Path::new("/proc/sys/vm/drop_caches").exists() {
            let error = read(&name("vm.drop_caches")).expect_err("it cannot be read");
            assert!(matches!(error, SysctlError::WriteOnly(_)), "{error}");
        }
        // Nothing writes the kernel's name, as whoever.
        let error = write(&name("kernel.ostype"), "Other").expect_err("it is read-only");
        assert!(matches!(error, SysctlError::Denied { .. } | SysctlError::ReadOnly), "{error}");
    }

    #[test]
    fn a_pattern_lists_what_it_means_and_only_that() {
        let all = list(None, true).expect("the tree");
        assert!(all.len() > 500, "{}", all.len());
        assert!(all.windows(2).all(|two| two[0].name < two[1].name), "in order, and each once");
        assert!(all.iter().all(|one| one.value.is_some() != one.unread.is_some()));
        let pattern: Pattern = "net.ipv4.conf.*.rp_filter".parse().expect("a pattern");
        let some = list(Some(&pattern), true).expect("the tree");
        let want = all.iter().filter(|one| pattern.matches(&name(&one.name)));
        let names = |all: &mut dyn Iterator<Item = &Parameter>| {
            all.map(|one| one.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut some.iter()), names(&mut want.into_iter()));
        assert!(some.iter().any(|one| one.name == "net.ipv4.conf.all.rp_filter"));
        let nothing: Pattern = "nothing.of.that.name".parse().expect("a pattern");
        assert_eq!(list(Some(&nothing), true).expect("the tree"), []);
    }

    #[test]
    fn what_only_its_owner_reads_is_shown_to_who_may() {
        let pattern: Pattern = "fs.protected_*".parse().expect("a pattern");
        for parameter in list(Some(&pattern), false).expect("the tree") {
            let path = Path::new(ROOT).join(name(&parameter.name).path());
            let mode = fs::metadata(path).expect("it is there").mode();
            assert_eq!(parameter.value.is_none(), is_private(mode), "{parameter:?}");
        }
    }
}
