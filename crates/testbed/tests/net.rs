//! Networks of namespaces: that packets go where they shall, and nowhere else after a fault.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kumo_abi::HostId;
use kumo_testbed::net::{
    Net, NetError, Place, Plan, Way, has_loss_for_tests, is_there_for_tests, remove_stale,
};
use nix::sched::{CloneFlags, setns};

/// Longest wait for a packet to come through: many times what a busy machine takes.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Packets that are sent where none shall arrive; each is waited for a while.
const LOST: usize = 3;

/// A network, or `None` with a message where none can be made.
fn net(dcs: usize, hosts: usize) -> Option<Net> {
    if !is_there_for_tests() {
        return None;
    }
    Some(Net::new(Plan::even(dcs, hosts, 1, Duration::ZERO).unwrap()).unwrap())
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

/// A socket of a host, on this port of its address.
fn socket(net: &Net, id: &HostId, port: u16) -> UdpSocket {
    let file = Path::new("/run/netns").join(net.namespace(&Place::Host(id.clone())));
    let address = net.address(id).unwrap();
    let within = move || -> io::Result<UdpSocket> {
        setns(File::open(file)?, CloneFlags::CLONE_NEWNET)?;
        UdpSocket::bind((address, port))
    };
    std::thread::spawn(within).join().unwrap().unwrap()
}

/// Two sockets of two hosts.
struct Pair {
    from: UdpSocket,
    to: UdpSocket,
    address: (Ipv4Addr, u16),
}

impl Pair {
    fn new(net: &Net, from: &str, to: &str) -> Pair {
        let (from, to) = (host(from), host(to));
        let address = (net.address(&to).unwrap(), 9);
        Pair { from: socket(net, &from, 0), to: socket(net, &to, 9), address }
    }

    /// Sends one packet; whether it came within `wait`.
    fn passes(&self, wait: Duration) -> bool {
        self.to.set_read_timeout(Some(wait)).unwrap();
        // Without a carrier the system may say that the network cannot be reached: as good as lost.
        let _ = self.from.send_to(b"x", self.address);
        self.to.recv(&mut [0; 8]).is_ok()
    }

    /// Waits until a packet comes through; how long that took.
    fn until_passes(&self) -> Duration {
        let began = Instant::now();
        while !self.passes(Duration::from_millis(20)) {
            assert!(began.elapsed() < WAIT_MAX, "no packet comes through");
        }
        began.elapsed()
    }

    fn is_cut(&self) -> bool {
        (0..LOST).all(|_| !self.passes(Duration::from_millis(100)))
    }
}

#[test]
fn hosts_reach_each_other_across_data_centres() {
    let Some(net) = net(3, 2) else { return };
    for (from, to) in [("tokyo/a", "tokyo/b"), ("tokyo/a", "osaka/b"), ("nagoya/b", "osaka/a")] {
        let took = Pair::new(&net, from, to).until_passes();
        println!("{from} to {to}: {took:?}");
    }
}

#[test]
fn a_cut_host_is_alone() {
    let Some(net) = net(1, 3) else { return };
    let (cut, other) =
        (Pair::new(&net, "tokyo/a", "tokyo/b"), Pair::new(&net, "tokyo/a", "tokyo/c"));
    cut.until_passes();
    let cable = net.host_cable(&host("tokyo/b")).unwrap();
    net.unplug(&cable).unwrap();
    assert!(cut.is_cut());
    other.until_passes();
    net.heal(&cable).unwrap();
    println!("healed after {:?}", cut.until_passes());
}

#[test]
fn a_cut_data_centre_goes_on_within() {
    let Some(net) = net(2, 2) else { return };
    let across = Pair::new(&net, "tokyo/a", "osaka/a");
    across.until_passes();
    let cable = net.dc_cable(&"osaka".parse().unwrap()).unwrap();
    net.unplug(&cable).unwrap();
    assert!(across.is_cut());
    Pair::new(&net, "osaka/a", "osaka/b").until_passes();
    net.heal(&cable).unwrap();
    println!("healed after {:?}", across.until_passes());
}

#[test]
fn a_black_hole_has_a_direction() {
    let Some(net) = net(1, 2).filter(|_| has_loss_for_tests()) else { return };
    let (to, from) = (Pair::new(&net, "tokyo/a", "tokyo/b"), Pair::new(&net, "tokyo/b", "tokyo/a"));
    to.until_passes();
    from.until_passes();
    let cable = net.host_cable(&host("tokyo/b")).unwrap();
    net.lose(&cable, Way::In, 100).unwrap();
    assert!(to.is_cut());
    from.until_passes();
    net.heal(&cable).unwrap();
    to.until_passes();
    net.lose(&cable, Way::Out, 100).unwrap();
    assert!(from.is_cut());
    net.heal(&cable).unwrap();
    from.until_passes();
}

#[test]
fn a_share_of_packets_is_lost() {
    let Some(net) = net(1, 2).filter(|_| has_loss_for_tests()) else { return };
    let pair = Pair::new(&net, "tokyo/a", "tokyo/b");
    pair.until_passes();
    net.lose(&net.host_cable(&host("tokyo/b")).unwrap(), Way::In, 50).unwrap();
    let count = 400;
    // Each is waited for, and nothing else fills the queue: what does not come was dropped.
    let came = (0..count).filter(|_| pair.passes(Duration::from_millis(5))).count();
    // Within ten standard deviations.
    assert!((100..300).contains(&came), "{came} of {count} came");
}

#[test]
fn nothing_is_left_of_a_dropped_network() {
    let Some(net) = net(1, 1) else { return };
    let name = net.namespace(&Place::Backbone);
    let names = || {
        let names = std::fs::read_dir("/run/netns").unwrap();
        names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let ours = name.split_once(':').unwrap().0.to_owned();
    assert_eq!(names().iter().filter(|name| name.starts_with(&ours)).count(), 3);
    drop(net);
    assert_eq!(names().iter().filter(|name| name.starts_with(&ours)).count(), 0);
}

#[test]
fn what_a_killed_owner_left_is_removed() {
    if !is_there_for_tests() {
        return;
    }
    // As a process would have named it that has this number no more.
    let stale = format!("kumo-{}-1-0:_backbone", 1 << 30);
    // Of somebody else, whatever it is.
    let foreign = format!("kumo-test-{}", std::process::id());
    for name in [&stale, &foreign] {
        assert!(Command::new("ip").args(["netns", "add", name]).status().unwrap().success());
    }
    // Another test may be quicker; then there is nothing left to remove.
    remove_stale().unwrap();
    let is_there = |name: &str| Path::new("/run/netns").join(name).exists();
    let found = (is_there(&stale), is_there(&foreign));
    assert!(Command::new("ip").args(["netns", "delete", &foreign]).status().unwrap().success());
    assert_eq!(found, (false, true));
}

#[test]
fn what_is_not_there_is_named() {
    let Some(net) = net(1, 1) else { return };
    let error = net.host_cable(&host("osaka/a")).unwrap_err();
    assert!(matches!(error, NetError::Unknown(_)));
    assert_eq!(error.to_string(), "there is no `osaka/a` in this world");
}
