//! What a node tells a Prometheus beside what its process table does: the cluster as it sees it, and
//! calls as its broker knows them. All of it is in memory.

use k2i::metrics::{Kind, Text};
use kumo_abi::cluster::HostState;

use crate::calls::Shared as Calls;
use crate::web::Web;

const STATES: [HostState; 4] =
    [HostState::Alive, HostState::Dead, HostState::CutOff, HostState::Left];

pub(crate) fn write(text: &mut Text, web: &Web, calls: &Calls) {
    let hosts = web.hosts();
    let help = "Hosts of the cluster by state, as this node sees them; itself among them";
    let mut family = text.family(Kind::Gauge, "kumo_cluster_hosts", "", help);
    for state in STATES {
        let count = hosts.iter().filter(|host| host.state == state).count();
        family.sample(&[("state", state.name())], count as f64);
    }
    let mut gauge = |name: &'static str, help: &str, count: usize| {
        text.single(Kind::Gauge, name, "", help, count as f64);
    };
    gauge("kumo_cluster_links", "Links of this node to others", web.links().len());
    let help = "Gateways that this node could not reach when it last tried";
    gauge("kumo_cluster_unreached", help, web.unreached().len());
    let counts = calls.counts();
    gauge("kumo_calls_programs", "Programs that call or serve", counts.programs);
    gauge("kumo_calls_connections", "Connections between programs", counts.connections);
    let help = "Calls that wait for their reply, as far as callers show it";
    gauge("kumo_calls_waiting", help, counts.waiting);
    let mut family =
        text.family(Kind::Gauge, "kumo_calls_instances", "", "Instances of services by state");
    for (state, count) in counts.instances {
        family.sample(&[("state", state)], count as f64);
    }
}
