//! Rights: root has them; an ordinary user gets them in a user namespace.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{getegid, geteuid};

/// Makes sure that networks can be made; whether that took a user namespace.
///
/// Must be called before any thread is started: the kernel moves a process into a user namespace only
/// as a whole.
///
/// # Errors
/// In words for people.
pub(crate) fn enter() -> Result<bool, String> {
    if geteuid().is_root() {
        return match kumo_testbed::net::unavailable() {
            None => Ok(false),
            Some(why) => Err(format!("no network can be made here: {why}")),
        };
    }
    become_root_of_own().map_err(|(what, error)| {
        format!(
            "cannot {what}: {error}. This kernel, or its settings, let no ordinary user make \
             networks (on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns); run it with \
             sudo instead"
        )
    })?;
    match kumo_testbed::net::unavailable() {
        None => Ok(true),
        Some(why) => Err(format!("no network can be made here: {why}; run it with sudo instead")),
    }
}

fn become_root_of_own() -> Result<(), (&'static str, io::Error)> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // A network too: `ip` returns to the one it came from, and may enter only those that are ours.
    let own = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(own).map_err(|errno| ("make a user namespace", errno.into()))?;
    let write = |file: &'static str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| ("map users", error))
    };
    // The kernel wants this of who maps groups without being root.
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))?;
    // `ip` keeps names in /run/netns, and the machine's is not ours to write to.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .and_then(|()| mount("run", "/run", "tmpfs", MountFlags::empty(), None))
        .map_err(|errno| ("mount a /run of our own", errno.into()))?;
    fs::create_dir("/run/netns").map_err(|error| ("make /run/netns", error))
}
