//! A node to call through, the built library, and programs that are waited for.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "no test uses all of it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use kumo_testbed::kumo_for_tests;

/// A program that runs; killed and reaped on drop.
pub struct Running {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it, and waits until it has written a line; which one.
    pub fn start(command: &mut Command) -> (Running, String) {
        Running::of(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until one that was started, with its output piped, has written a line; which one.
    pub fn of(mut child: Child) -> (Running, String) {
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut running = Running { child, lines };
        let line = running.line();
        (running, line)
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Writes a line to its input, which is piped.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The same, and what it writes then.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A host with a node of its own: a real `kumo up`.
pub struct Host {
    pub dir: tempfile::TempDir,
    node: Running,
}

impl Host {
    pub fn start() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let mut up = Command::new(kumo_for_tests());
        up.args(["up", "--listen", "127.0.0.1:0", "--collector", "proc", "--view", "never"]);
        up.args(["--dc", "tokyo", "--host", "a", "--state-dir"]).arg(dir.path().join("state"));
        up.arg("--run-dir").arg(dir.path().join("run")).stderr(Stdio::null());
        let (node, line) = Running::start(&mut up);
        assert!(line.contains("serves http://"), "{line:?}");
        Host { dir, node }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Calls with `kumo call`; the reply.
    pub fn call(&self, callee: &str, data: &str) -> String {
        let mut kumo = Command::new(kumo_for_tests());
        kumo.arg("call").arg("--run-dir").arg(self.run_dir()).args([callee, data]);
        let output = kumo.stdin(Stdio::null()).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{callee}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The shared library that was built along with this test.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap().join("libmiddlecon_c.so");
    assert!(library.exists(), "cargo builds {} along with its tests", library.display());
    library
}

/// Installs the library into `dir` by the names that programs look for.
pub fn install_library(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for name in ["libmiddlecon.so.1", "libmiddlecon.so"] {
        std::os::unix::fs::symlink(library(), dir.join(name)).unwrap();
    }
}

/// Whether a program is there.
pub fn has(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a program to its end, which must be a good one; what it wrote.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{complaint}", output.status);
    out
}

/// Compiles a source into `dir` with every warning an error, and links it with the library.
pub fn compile(dir: &Path, source: &Path, compiler: &str, standard: &str) -> PathBuf {
    let libraries = dir.join("lib");
    if !libraries.exists() {
        install_library(&libraries);
    }
    let program = dir.join(source.file_stem().unwrap());
    let mut cc = Command::new(compiler);
    cc.args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-pthread", "-I"]);
    cc.arg(root().join("crates/ffi/include")).arg(source).arg("-o").arg(&program);
    cc.arg("-L").arg(&libraries).arg("-lmiddlecon");
    cc.arg(format!("-Wl,-rpath,{}", libraries.display()));
    run(&mut cc);
    program
}
