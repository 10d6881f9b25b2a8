//! What other hosts serve and who may call what: read from the desired state, and written into it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kumo_abi::call::{Cause, ServiceName};
use kumo_abi::cluster::HostState;
use kumo_abi::control::FromNode;
use kumo_abi::{DcName, HostId};
use kumo_fabric::Fabric;
use kumo_fabric::join::registry;
use kumo_fabric::store::StoreError;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::rules::acl::Acl;
use super::rules::directory::{self, Serves};
use super::rules::publish::{BETWEEN_MS, SAME_NAME_MS};
use super::{Shared, now, peers};
use crate::web::Web;

/// What keys of access lists begin with: `acl/SERVICE`.
const ACL_PREFIX: &str = "acl/";

/// What keys of evictions begin with, of hosts and of single certificates.
const EVICTED_PREFIX: &str = "evicted";

/// Numbers of the directory, and ways, are looked at anew so often; what matters comes by events.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The key of the access list of a service.
pub(crate) fn acl_key(service: &ServiceName) -> String {
    format!("{ACL_PREFIX}{service}")
}

/// Keeps the rules' picture of the cluster up to date, until the node stops.
pub(super) async fn keep(shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
    let Web::Many(fabric) = shared.web.clone() else { return };
    tokio::select! {
        () = follow(&shared, &fabric) => {}
        () = publish(&shared, &fabric) => {}
        // An error means that the node is gone.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

/// Takes in what is there, and then what changes.
async fn follow(shared: &Arc<Shared>, fabric: &Fabric) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Before all is read: what changes meanwhile is heard of.
        let (mut changes, mut events) = (fabric.store().changes(), fabric.events());
        read_all(shared, fabric);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => take_in(shared, fabric, &change.key),
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
                event = events.recv() => match event {
                    Ok(event) => {
                        note_hosts(shared, fabric);
                        lost(shared, &event.id, event.state);
                    }
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
                _ = ticks.tick() => {
                    note_hosts(shared, fabric);
                    note_far(shared, fabric);
                }
            }
        }
    }
}

fn read_all(shared: &Arc<Shared>, fabric: &Fabric) {
    for prefix in [ACL_PREFIX, directory::PREFIX] {
        let entries = fabric.store().with_prefix(prefix);
        for (key, _) in entries {
            take_in(shared, fabric, &key);
        }
    }
    note_hosts(shared, fabric);
    note_far(shared, fabric);
    for host in fabric.states() {
        lost(shared, &host.id, host.state);
    }
}

/// Takes in what stands under a key now, if that is one of ours.
fn take_in(shared: &Arc<Shared>, fabric: &Fabric, key: &str) {
    if let Some(host) = directory::from_key(key) {
        let value = fabric.store().value(key);
        let serves: Option<Serves> = value.and_then(|value| serde_json::from_slice(&value).ok());
        shared.act(|broker, now, fresh| {
            broker.note_serves(&host, serves);
            broker.tick(now, fresh)
        });
    } else if let Some(service) = key.strip_prefix(ACL_PREFIX) {
        let Ok(service) = service.parse::<ServiceName>() else { return };
        let acl = fabric.store().value(key).map(|value| read_acl(&service, &value));
        shared.act(|broker, now, fresh| broker.note_acl(&service, acl, now, fresh));
    } else if key.starts_with(EVICTED_PREFIX) {
        let evicted = FromNode::Evicted { serials: peers::evicted(fabric) };
        let state = shared.state();
        state.certified.iter().for_each(|program| state.tell(*program, &evicted));
        drop(state);
        // New connections are refused by certificates; those that are open would stay.
        if let Some(host) = registry::evicted_host(key) {
            shared.act(|broker, now, fresh| broker.host_lost(&host, Cause::Denied, now, fresh));
        }
    }
}

/// A list that this node cannot read may forbid anything: then nobody may.
pub(crate) fn read_acl(service: &ServiceName, value: &[u8]) -> Acl {
    serde_json::from_slice(value).unwrap_or_else(|error| {
        tracing::error!(
            "the access list of `{service}` cannot be read, so nobody may call or serve it here: {error}"
        );
        Acl { call: Some(Vec::new()), serve: Some(Vec::new()) }
    })
}

fn note_hosts(shared: &Arc<Shared>, fabric: &Fabric) {
    let hosts = fabric.states();
    shared.act(|broker, now, fresh| {
        broker.note_hosts(&hosts);
        broker.tick(now, fresh)
    });
}

fn note_far(shared: &Shared, fabric: &Fabric) {
    let mut far_us: BTreeMap<DcName, u32> = BTreeMap::new();
    for link in fabric.links().into_iter().filter(|link| link.rtt_us > 0) {
        let nearest = far_us.entry(link.peer.dc).or_insert(link.rtt_us);
        *nearest = (*nearest).min(link.rtt_us);
    }
    shared.state().broker.note_far(far_us);
}

/// Those who are connected with a lost host are told, once it does not answer us either. Who says good-bye
/// leaves the connections of its programs alone.
fn lost(shared: &Arc<Shared>, host: &HostId, state: HostState) {
    if matches!(state, HostState::Dead | HostState::CutOff) {
        shared.elsewhere.spawn(peers::doubt(Arc::clone(shared), host.clone()));
    }
}

/// Tells the others what this host serves.
async fn publish(shared: &Arc<Shared>, fabric: &Fabric) {
    let me = fabric.identity().host.clone();
    let key = directory::key(&me);
    let mut ticks = interval(Duration::from_millis(SAME_NAME_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let incarnation = shared.web.incarnation();
        let due = {
            let mut state = shared.state();
            let now_ms = now().ms;
            state.publisher.due(now_ms, incarnation)
        };
        if let Some(serves) = due {
            let bytes = serde_json::to_vec(&serves).unwrap_or_default();
            let (store, key) = (Arc::clone(fabric.store()), key.clone());
            let put = spawn_blocking(move || -> Result<(), StoreError> {
                if store.value(&key).as_ref() == Some(&bytes) {
                    Ok(())
                } else {
                    store.put(&key, bytes)
                }
            });
            if let Ok(Err(error)) = put.await {
                tracing::warn!("others could not be told what this host serves: {error}");
            }
        }
        tokio::select! {
            () = shared.publish.notified() => {
                // What comes at the same time is told together.
                tokio::time::sleep(Duration::from_millis(BETWEEN_MS / 10)).await;
            }
            _ = ticks.tick() => {}
        }
    }
}
