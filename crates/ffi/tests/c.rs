//! C programs, compiled with the header and linked with the library, through a real node.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Host, Running, compile, has, root, run};

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name)
}

#[test]
fn a_c_program_calls_and_serves_and_is_told_the_truth() {
    let host = Host::start();
    let program = compile(host.dir.path(), &source("check.c"), "cc", "-std=c11");
    let out = run(Command::new(&program).arg(host.run_dir()));
    assert!(out.ends_with("all checks passed\n"), "{out}");
    // Not valgrind, under which rustix finds no vDSO where the kernel says that it is, and dies. The library's
    // allocations are malloc's, so the sanitizer sees those, too: what is lost, freed twice, or used late.
    let sanitized = host.path("check-sanitized");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-g", "-pthread", "-fsanitize=address,undefined", "-I"]);
    cc.arg(root().join("crates/ffi/include")).arg(source("check.c")).arg("-o").arg(&sanitized);
    cc.arg("-L").arg(host.path("lib")).arg("-lmiddlecon");
    cc.arg(format!("-Wl,-rpath,{}", host.path("lib").display()));
    if !cc.output().unwrap().status.success() {
        eprintln!("skipped: cc has no address sanitizer, so that no memory is checked");
        return;
    }
    let out = run(Command::new(&sanitized).arg(host.run_dir()));
    assert!(out.ends_with("all checks passed\n"), "{out}");
}

#[test]
fn the_examples_of_c_work() {
    let host = Host::start();
    let server = compile(host.dir.path(), &root().join("examples/c/serve.c"), "cc", "-std=c11");
    let caller = compile(host.dir.path(), &root().join("examples/c/call.c"), "cc", "-std=c11");
    let (mut server, line) = Running::start(Command::new(server).arg(host.run_dir()));
    assert_eq!(line, "serves greeter\n");
    let out = run(Command::new(caller).arg(host.run_dir()).arg("world"));
    assert_eq!(out, "hello world\n");
    assert_eq!(host.call("greeter/greet", "you"), "hello you");
    let pid = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.child.wait().unwrap().success(), "it drains and ends");
}

#[test]
fn the_header_is_cpp_too() {
    if !has("c++") {
        eprintln!("skipped: no C++ compiler; get one with apt: g++");
        return;
    }
    let host = Host::start();
    let header = host.path("header.cpp");
    let text = "#include <middlecon.h>\nint main() { return mc_abi_version() == MC_ABI_VERSION ? 0 : 1; }\n";
    std::fs::write(&header, text).unwrap();
    run(&mut Command::new(compile(host.dir.path(), &header, "c++", "-std=c++17")));
}
