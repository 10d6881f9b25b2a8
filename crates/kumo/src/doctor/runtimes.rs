//! The runtimes that instances can run in, and their helpers.

use super::probe::Found;
use super::{Check, State};

/// A program that is looked for.
#[derive(Debug)]
pub(super) struct Program {
    /// What the report calls it.
    pub(super) name: &'static str,
    /// The names of its file; the first that is there counts.
    pub(super) names: &'static [&'static str],
    why: &'static str,
    get: &'static str,
}

const QEMU: &str = match std::env::consts::ARCH.as_bytes() {
    b"aarch64" => "qemu-system-aarch64",
    _ => "qemu-system-x86_64",
};

/// All that are looked for.
pub(super) const PROGRAMS: &[Program] = &[
    Program {
        name: "runc",
        names: &["runc"],
        why: "containers; the reference OCI runtime",
        get: "apt install runc",
    },
    Program {
        name: "crun",
        names: &["crun"],
        why: "containers by a small OCI runtime in C",
        get: "apt install crun",
    },
    Program {
        name: "youki",
        names: &["youki"],
        why: "containers by an OCI runtime in Rust",
        get: "a release of https://github.com/youki-dev/youki",
    },
    Program {
        name: "gVisor",
        names: &["runsc"],
        why: "sandboxes: containers on a kernel of their own in user space",
        get: "https://gvisor.dev/docs/user_guide/install/",
    },
    Program {
        name: "Firecracker",
        names: &["firecracker"],
        why: "microVMs and their snapshots; needs KVM",
        get: "a release of https://github.com/firecracker-microvm/firecracker",
    },
    Program {
        name: "Kata shim",
        names: &["containerd-shim-kata-v2", "kata-runtime"],
        why: "containers in microVMs",
        get: "a release of https://github.com/kata-containers/kata-containers",
    },
    Program {
        name: "Nabla",
        names: &["runnc"],
        why: "unikernels as OCI containers",
        get: "https://github.com/nabla-containers/runnc",
    },
    Program {
        name: "urunc",
        names: &["urunc"],
        why: "unikernels as OCI containers",
        get: "a release of https://github.com/urunc-dev/urunc",
    },
    Program {
        name: "QEMU",
        names: &[QEMU],
        why: "microVMs, also by software where KVM is not usable",
        get: "apt install qemu-system-x86 (on arm64: qemu-system-arm)",
    },
    Program {
        name: "containerd",
        names: &["containerd"],
        why: "images and bundles; its containers are recognised in the table",
        get: "apt install containerd",
    },
    Program {
        name: "Docker",
        names: &["docker"],
        why: "images; its containers are recognised in the table",
        get: "apt install docker.io",
    },
    Program {
        name: "Podman",
        names: &["podman"],
        why: "images without a daemon; its containers are recognised in the table",
        get: "apt install podman",
    },
    Program {
        name: "CRIU",
        names: &["criu"],
        why: "checkpoints of containers, to move them or put them to sleep on disk",
        get: "apt install criu (Debian 12 has it in backports only)",
    },
];

/// One check for each program.
pub(super) fn checks(found: &[Found]) -> Vec<Check> {
    let check = |found: &Found| {
        let Program { name, names, why, get } = found.program;
        let (state, said) = match (&found.path, &found.version) {
            (None, _) => (State::Missing, format!("no {} in PATH", names.join(" or "))),
            (Some(path), Some(version)) => (State::Ok, format!("{version} ({})", path.display())),
            (Some(path), None) => {
                (State::Limited, format!("{} does not tell its version", path.display()))
            }
        };
        let fix = match state {
            State::Ok => None,
            State::Limited => Some(format!("run `{} --version` and see", names[0])),
            State::Missing => Some((*get).to_owned()),
        };
        Check { area: "Runtimes", name, state, found: said, why, fix }
    };
    found.iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_and_what_is_not() {
        let found = |path: Option<&str>, version: Option<&str>| Found {
            program: &PROGRAMS[0],
            path: path.map(Into::into),
            version: version.map(str::to_owned),
        };
        let cases = [
            (found(None, None), State::Missing),
            (found(Some("/usr/bin/runc"), None), State::Limited),
            (found(Some("/usr/bin/runc"), Some("runc version 1.1.5")), State::Ok),
        ];
        for (found, want) in cases {
            let checks = checks(std::slice::from_ref(&found));
            assert_eq!(checks[0].state, want, "for {found:?}");
            assert_eq!(checks[0].fix.is_none(), want == State::Ok, "a fix where one is needed");
        }
    }
}
