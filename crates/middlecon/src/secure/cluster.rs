//! Whom a program of a cluster believes on other hosts: the programs of its cluster, and of those the one
//! that the nodes named.

use std::sync::Arc;

use arc_swap::ArcSwap;
use kumo_abi::call::{Peer, ServiceName, Who};
use kumo_abi::control::Certificate;
use kumo_abi::{HostId, chain};
use kumo_pki::program::WantedProgram;
use kumo_pki::{KeyId, Program, ProgramId, ProgramTls, Trust, tls};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};

use super::{Secure, Setup};

/// Believes what the node's certificate says of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct OfCluster;

impl Secure for OfCluster {
    fn client(
        &self,
        certificate: &Certificate,
        service: &ServiceName,
        peer: &Peer,
    ) -> Result<(Setup<ClientConfig>, ServerName<'static>), rustls::Error> {
        let own = own(certificate)?;
        let wanted = wanted(&own, &peer.host, Program::Service(service.clone()));
        Ok((setup(own.client(wanted)?), tls::server_name()))
    }

    fn server(
        &self,
        certificate: &Certificate,
        peer: &Peer,
    ) -> Result<Setup<ServerConfig>, rustls::Error> {
        let own = own(certificate)?;
        let caller = match &peer.who {
            Who::Service(service) => Program::Service(service.clone()),
            Who::User(uid) => Program::User(*uid),
        };
        Ok(setup(own.server(wanted(&own, &peer.host, caller))?))
    }
}

/// As TLS reads it, with the reason of a refusal, of which TLS itself tells only the kind.
fn setup<Config: Send + Sync + 'static>(made: tls::Setup<Config>) -> Setup<Config> {
    let config = made.config.clone();
    Setup { config, refused: Box::new(move || made.refused().map(ToString::to_string)) }
}

fn wanted(own: &ProgramTls, host: &HostId, program: Program) -> WantedProgram {
    let cluster = own.own().id.cluster.clone();
    WantedProgram::Exactly(ProgramId { cluster, host: host.clone(), program })
}

/// Our side of TLS, as our node made it.
fn own(certificate: &Certificate) -> Result<ProgramTls, rustls::Error> {
    let unusable = |error: &dyn std::error::Error| rustls::Error::General(chain(error));
    let [program, host] = certificate.chain.as_slice() else {
        let what = "a certificate of a program comes with its host's, and nothing else";
        return Err(rustls::Error::General(what.to_owned()));
    };
    let der = |bytes: &Vec<u8>| CertificateDer::from(bytes.clone());
    // Keys that are none are of nobody.
    let evicted = certificate.evicted.iter().filter_map(|key| key.as_slice().try_into().ok());
    let evicted = Arc::new(ArcSwap::from_pointee(evicted.map(KeyId::from_bytes).collect()));
    let trust = Trust::new(&der(&certificate.authority), evicted);
    let trust = Arc::new(trust.map_err(|error| unusable(&error))?);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certificate.key.clone()));
    ProgramTls::new(trust, der(program), der(host), &key).map_err(|error| unusable(&error))
}
