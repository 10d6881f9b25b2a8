//! Whom a program that we ship believes on other hosts, be it a command or the node that calls for
//! others: the programs of its cluster, and of those the one that the nodes named.

use std::sync::Arc;

use arc_swap::ArcSwap;
use kumo_abi::HostId;
use kumo_abi::call::{Peer, ServiceName, Who};
use kumo_abi::control::Certificate;
use kumo_pki::program::WantedProgram;
use kumo_pki::{KeyId, Program, ProgramId, ProgramTls, Trust, tls};
use middlecon::Secure;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};

/// Believes what the node's certificate says of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct OfCluster;

impl Secure for OfCluster {
    fn client(
        &self,
        certificate: &Certificate,
        service: &ServiceName,
        peer: &Peer,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), rustls::Error> {
        let own = own(certificate)?;
        let wanted = wanted(&own, &peer.host, program(service)?);
        Ok((own.client(wanted)?.config, tls::server_name()))
    }

    fn server(
        &self,
        certificate: &Certificate,
        peer: &Peer,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let own = own(certificate)?;
        let caller = match &peer.who {
            Who::Service(service) => program(service)?,
            Who::User(uid) => Program::User(*uid),
        };
        Ok(own.server(wanted(&own, &peer.host, caller))?.config)
    }
}

fn program(service: &ServiceName) -> Result<Program, rustls::Error> {
    let name = service.as_str().parse();
    let name = name.map_err(|_| rustls::Error::General(format!("`{service}` is no service")))?;
    Ok(Program::Service(name))
}

fn wanted(own: &ProgramTls, host: &HostId, program: Program) -> WantedProgram {
    let cluster = own.own().id.cluster.clone();
    WantedProgram::Exactly(ProgramId { cluster, host: host.clone(), program })
}

/// Our side of TLS, as our node made it.
fn own(certificate: &Certificate) -> Result<ProgramTls, rustls::Error> {
    let unusable = |error: &dyn std::error::Error| rustls::Error::General(k2i::chain(error));
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
