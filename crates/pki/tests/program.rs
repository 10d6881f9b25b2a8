//! Programs that prove who they are to each other, and all that is refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_pki::program::{
    IssuerError, PROGRAM_BACKDATED_MS, PROGRAM_MS, ProgramError, ProgramRefusal, WantedProgram,
};
use kumo_pki::tls::{peer_of, server_name};
use kumo_pki::trust::Refusal;
use kumo_pki::{
    Authority, Evicted, NODE_MS, Peer, Program, ProgramId, ProgramIssuer, ProgramKey, ProgramPeer,
    ProgramTls, Trust, new_request,
};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{ClientConnection, ServerConnection};

const NOW_MS: u64 = 1_800_000_000_000;

fn at(ms: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(ms))
}

fn host_id(text: &str) -> HostId {
    text.parse().expect("a host")
}

fn db() -> Program {
    Program::Service("db".parse().expect("a name"))
}

fn authority(cluster: &str, at_ms: u64) -> Authority {
    Authority::create(&cluster.parse().expect("a name"), at_ms).expect("an authority")
}

/// A host and its key.
struct Host {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    issuer: ProgramIssuer,
}

impl Host {
    fn new(authority: &Authority, name: &str, at_ms: u64) -> Host {
        let (key, csr) = new_request().expect("a request");
        let certificate = authority.issue(&csr, &host_id(name), Role::Member, at_ms);
        let certificate = certificate.expect("issued");
        let issuer = ProgramIssuer::new(certificate.clone(), &key).expect("a pair");
        Host { certificate, key, issuer }
    }

    /// A program of it, and what it shows.
    fn program(&self, program: Program, at_ms: u64) -> (ProgramKey, [CertificateDer<'static>; 2]) {
        let key = ProgramKey::create().expect("randomness");
        let issued = self.issuer.issue(&key.public_der, program, at_ms).expect("issued");
        (key, [issued, self.certificate.clone()])
    }
}

fn trust(authority: &Authority) -> (Arc<Trust>, Evicted) {
    let evicted = Evicted::default();
    let trust = Trust::new(authority.certificate(), Arc::clone(&evicted)).expect("an authority");
    (Arc::new(trust), evicted)
}

/// A certificate with these names, signed by `signer` in the name of `issuer`.
fn forge(
    uris: &[&str],
    is_ca: bool,
    issuer: &CertificateDer<'_>,
    signer: &PrivateKeyDer<'_>,
) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    let uri = |uri: &&str| SanType::URI((*uri).to_owned().try_into().expect("ASCII"));
    params.subject_alt_names = uris.iter().map(uri).collect();
    if is_ca {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let PrivateKeyDer::Pkcs8(signer) = signer else { panic!("PKCS #8 is what we make") };
    let signer = KeyPair::from_pkcs8_der_and_sign_algo(signer, &PKCS_ECDSA_P256_SHA256);
    let issuer = Issuer::from_ca_cert_der(issuer, signer.expect("a key")).expect("an issuer");
    let own = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    params.signed_by(&own, &issuer).expect("signed").der().clone()
}

#[test]
fn a_program_is_believed_to_be_below_its_host() {
    let authority = authority("acme", NOW_MS);
    let host = Host::new(&authority, "tokyo/a", NOW_MS);
    let (trust, _) = trust(&authority);
    for program in [db(), Program::User(0), Program::User(u32::MAX)] {
        let (_, chain) = host.program(program.clone(), NOW_MS);
        let peer = trust.program(&chain, &WantedProgram::Anyone, at(NOW_MS)).expect("believed");
        assert_eq!(peer.id, host.issuer.id(program));
        assert_eq!(peer.id.host, host_id("tokyo/a"));
        assert_eq!(peer.not_before_ms, NOW_MS - PROGRAM_BACKDATED_MS);
        assert_eq!(peer.not_after_ms, NOW_MS + PROGRAM_MS);
        assert!(!peer.wants_renewal(NOW_MS + PROGRAM_MS / 2 - 1));
        assert!(peer.wants_renewal(NOW_MS + PROGRAM_MS / 2));
    }
}

#[test]
fn names_of_programs() {
    let good = [
        "spiffe://acme/dc/tokyo/host/web-1/service/db",
        "spiffe://acme/dc/tokyo/host/web-1/user/1000",
        "spiffe://acme/dc/tokyo/host/web-1/user/0",
    ];
    for text in good {
        assert_eq!(text.parse::<ProgramId>().expect("a name").to_string(), text);
    }
    for bad in [
        "",
        "spiffe://acme/dc/tokyo/host/web-1",
        "spiffe://acme/dc/tokyo/host/web-1/service",
        "spiffe://acme/dc/tokyo/host/web-1/service/",
        "spiffe://acme/dc/tokyo/host/web-1/service/a/b",
        "spiffe://acme/dc/tokyo/host/web-1/service/DB",
        "spiffe://acme/dc/tokyo/host/web-1/root/db",
        "spiffe://acme/dc/tokyo/host/web-1/user/-1",
        "spiffe://acme/dc/tokyo/host/web-1/user/+1",
        "spiffe://acme/dc/tokyo/host/web-1/user/01",
        "spiffe://acme/dc/tokyo/host/web-1/user/4294967296",
        "spiffe://acme/dc/tokyo/host//service/db",
        "https://acme/dc/tokyo/host/web-1/service/db",
    ] {
        assert!(bad.parse::<ProgramId>().is_err(), "for {bad}");
    }
}

#[test]
fn whatever_is_wrong_is_refused_for_what_it_is() {
    let authority = authority("acme", NOW_MS);
    let (host, other) =
        (Host::new(&authority, "tokyo/a", NOW_MS), Host::new(&authority, "tokyo/b", NOW_MS));
    let stranger = self::authority("beta", NOW_MS);
    let stranger = Host::new(&stranger, "tokyo/a", NOW_MS);
    let namesake = self::authority("acme", NOW_MS);
    let namesake = Host::new(&namesake, "tokyo/a", NOW_MS);
    let (trust, _) = trust(&authority);
    let (key, [program, own]) = host.program(db(), NOW_MS);
    let uri = host.issuer.id(db()).to_string();
    let uri = uri.as_str();
    let signed = |uris: &[&str]| forge(uris, false, &host.certificate, &host.key);
    let chain = |first: &CertificateDer<'static>, second: &CertificateDer<'static>| {
        vec![first.clone(), second.clone()]
    };
    let node = Peer::of(&own).expect("a host");
    let node_name = "spiffe://acme/dc/tokyo/host/a";
    let of_stranger = stranger.program(db(), NOW_MS).1.to_vec();
    let of_namesake = namesake.program(db(), NOW_MS).1.to_vec();
    #[rustfmt::skip]
    let cases = [
        ("another cluster", of_stranger, "cluster `beta`"),
        ("another cluster of that name", of_namesake, "not issued by its authority"),
        ("a host's certificate as a program's", chain(&own, &own), "no program"),
        ("a host's certificate alone", vec![own.clone()], "showed 1 certificates"),
        ("a program's certificate alone", vec![program.clone()], "showed 1 certificates"),
        ("three", vec![program.clone(), own.clone(), own.clone()], "showed 3 certificates"),
        ("nothing", vec![], "showed 0 certificates"),
        ("no certificate", chain(&CertificateDer::from(vec![1, 2, 3]), &own), "no certificate in DER"),
        ("no host", chain(&program, &CertificateDer::from(vec![1, 2, 3])), "of its host is refused"),
        ("the authority for a host", chain(&program, authority.certificate()), "that of an authority"),
        ("the name of another host", chain(&program, &other.certificate), "not below `tokyo/b`"),
        ("another host's key below that host", chain(&forge(&[uri], false, &other.certificate, &other.key), &other.certificate), "not below `tokyo/b`"),
        ("a name in another cluster", chain(&signed(&["spiffe://beta/dc/tokyo/host/a/service/db"]), &own), "not below"),
        ("another host's signature", chain(&forge(&[uri], false, &own, &other.key), &own), "not certified by `tokyo/a`"),
        ("another host's signature and name", chain(&forge(&[uri], false, &other.certificate, &other.key), &own), "not certified by `tokyo/a`"),
        ("a program's signature", chain(&forge(&[uri], false, &own, &key.private), &own), "not certified by `tokyo/a`"),
        ("a program for a host", chain(&forge(&[uri], false, &program, &key.private), &program), "of no node"),
        ("the authority's own signature", chain(&forge(&[uri], false, authority.certificate(), &authority.key()), &own), "not certified by `tokyo/a`"),
        ("an authority below the host", chain(&forge(&[uri], true, &own, &host.key), &own), "that of an authority"),
        ("two names", chain(&signed(&[uri, node_name]), &own), "names 2 programs"),
        ("no name", chain(&signed(&[]), &own), "names 0 programs"),
        ("a host's name by the host", chain(&signed(&[node_name]), &own), "names no program"),
    ];
    for (what, shown, want) in cases {
        let refused = trust.program(&shown, &WantedProgram::Anyone, at(NOW_MS));
        let refusal = refused.expect_err(what);
        assert!(refusal.to_string().contains(want), "`{refusal}` for {what}");
    }
    // What a host signs is no host: neither of its program's name nor of its own.
    for forged in [&program, &forge(&[node_name], false, &own, &host.key)] {
        let wanted = kumo_pki::trust::Wanted::Anyone;
        let end = kumo_pki::trust::End::Client;
        let chain = std::slice::from_ref(&own);
        assert!(trust.host(end, forged, chain, &wanted, at(NOW_MS)).is_err());
    }
    assert_eq!(node.host, host_id("tokyo/a"));
}

#[test]
fn certificates_count_in_their_time_and_not_beyond_their_hosts() {
    let authority = authority("acme", NOW_MS);
    let host = Host::new(&authority, "tokyo/a", NOW_MS);
    let (trust, _) = trust(&authority);
    let (_, chain) = host.program(db(), NOW_MS);
    let judge = |chain: &[_], ms| trust.program(chain, &WantedProgram::Anyone, at(ms));
    judge(&chain, NOW_MS - PROGRAM_BACKDATED_MS).expect("the first moment");
    judge(&chain, NOW_MS + PROGRAM_MS).expect("the last moment");
    let early = judge(&chain, NOW_MS - PROGRAM_BACKDATED_MS - 2_000).expect_err("too early");
    assert!(matches!(early, ProgramRefusal::NotYet { in_s: 2, .. }), "{early:?}");
    let late = judge(&chain, NOW_MS + PROGRAM_MS + 5_000).expect_err("too late");
    assert!(matches!(late, ProgramRefusal::Expired { ago_s: 5, .. }), "{late:?}");

    let last_ms = NOW_MS + NODE_MS - 60_000;
    let (_, chain) = host.program(db(), last_ms);
    let peer = judge(&chain, last_ms).expect("still good");
    assert_eq!(peer.not_after_ms, NOW_MS + NODE_MS);
    let gone = judge(&chain, NOW_MS + NODE_MS + 1_000).expect_err("its host has expired");
    assert!(matches!(gone, ProgramRefusal::Host(Refusal::Expired { .. })), "{gone:?}");
    let key = ProgramKey::create().expect("randomness");
    let issued = host.issuer.issue(&key.public_der, db(), NOW_MS + NODE_MS);
    assert!(matches!(issued, Err(IssuerError::Expired)), "{issued:?}");
}

#[test]
fn an_evicted_hosts_programs_are_out_with_it() {
    let authority = authority("acme", NOW_MS);
    let host = Host::new(&authority, "tokyo/a", NOW_MS);
    let (trust, evicted) = trust(&authority);
    let (_, chain) = host.program(db(), NOW_MS);
    let judge = || trust.program(&chain, &WantedProgram::Anyone, at(NOW_MS));
    judge().expect("it is not evicted yet");
    let key_id = Peer::of(&host.certificate).expect("a host").key_id;
    evicted.store(Arc::new(BTreeSet::from([key_id])));
    let refusal = judge().expect_err("evicted");
    assert!(matches!(refusal, ProgramRefusal::Host(Refusal::Evicted { .. })), "{refusal:?}");
    evicted.store(Arc::default());
    judge().expect("the set can change");
}

#[test]
fn whoever_is_wanted_is_told_from_others() {
    let authority = authority("acme", NOW_MS);
    let host = Host::new(&authority, "tokyo/a", NOW_MS);
    let (trust, _) = trust(&authority);
    let (_, chain) = host.program(db(), NOW_MS);
    let id = host.issuer.id(db());
    let judge = |wanted| trust.program(&chain, &wanted, at(NOW_MS));
    judge(WantedProgram::OfHost(host_id("tokyo/a"))).expect("its host");
    judge(WantedProgram::Exactly(id.clone())).expect("itself");
    let refusal = judge(WantedProgram::OfHost(host_id("osaka/a"))).expect_err("another host");
    assert!(matches!(refusal, ProgramRefusal::OfHost { .. }), "{refusal:?}");
    let wanted = ProgramId { program: Program::User(0), ..id };
    let refusal = judge(WantedProgram::Exactly(wanted)).expect_err("another program");
    assert!(matches!(refusal, ProgramRefusal::Program { .. }), "{refusal:?}");
}

#[test]
fn a_host_certifies_keys_of_its_kind_only_and_with_its_own_key_only() {
    let authority = authority("acme", NOW_MS);
    let host = Host::new(&authority, "tokyo/a", NOW_MS);
    let key = ProgramKey::create().expect("randomness");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let longer = [&key.public_der[..], &[0]].concat();
    let p384 = rcgen::PublicKeyData::subject_public_key_info(&p384);
    for bad in [&[][..], &key.public_der[1..], &longer, &p384] {
        let issued = host.issuer.issue(bad, db(), NOW_MS);
        assert!(matches!(issued, Err(IssuerError::PublicKey)), "{issued:?}");
    }
    assert!(ProgramIssuer::new(host.certificate.clone(), &key.private).is_err());
    let (key, [program, _]) = host.program(db(), NOW_MS);
    let issuer = ProgramIssuer::new(program.clone(), &key.private);
    assert!(matches!(issuer, Err(IssuerError::Host(_))), "a program certifies nobody");
    assert_eq!(ProgramPeer::of(authority.certificate()), Err(ProgramError::Authority));
}

/// Carries bytes between the two until the handshake is done on both sides.
///
/// # Errors
/// What the side that failed first says, and whether it was the server.
fn shake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> Result<(), (rustls::Error, bool)> {
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory");
        server.read_tls(&mut &wire[..]).expect("memory");
        server.process_new_packets().map_err(|error| (error, true))?;
        wire.clear();
        server.write_tls(&mut wire).expect("memory");
        client.read_tls(&mut &wire[..]).expect("memory");
        client.process_new_packets().map_err(|error| (error, false))?;
    }
    Ok(())
}

#[test]
fn two_programs_shake_hands() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let now_ms = u64::try_from(now.as_millis()).expect("not yet");
    let authority = authority("acme", now_ms);
    let tls = |host: &str, program: Program| {
        let host = Host::new(&authority, host, now_ms);
        let (key, [own, of_host]) = host.program(program, now_ms);
        ProgramTls::new(trust(&authority).0, own, of_host, &key.private).expect("a pair")
    };
    let (caller, callee) = (tls("tokyo/a", Program::User(7)), tls("osaka/b", db()));
    let connect = |wanted: WantedProgram, by: WantedProgram| {
        let (dials, dialed) = (caller.client(wanted), callee.server(by));
        let (dials, dialed) = (dials.expect("TLS"), dialed.expect("TLS"));
        let client = ClientConnection::new(Arc::clone(&dials.config), server_name());
        let server = ServerConnection::new(Arc::clone(&dialed.config));
        let (mut client, mut server) = (client.expect("TLS"), server.expect("TLS"));
        let shaken = shake(&mut client, &mut server);
        (shaken, client, server, dials, dialed)
    };
    let exactly = |tls: &ProgramTls| WantedProgram::Exactly(tls.own().id.clone());
    let (shaken, client, server, ..) = connect(exactly(&callee), exactly(&caller));
    shaken.expect("they know each other");
    let seen = |certificates: Option<&[_]>| peer_of(certificates).expect("a program").id;
    assert_eq!(seen(client.peer_certificates()), callee.own().id);
    assert_eq!(seen(server.peer_certificates()), caller.own().id);
    assert_eq!(client.alpn_protocol(), Some(kumo_pki::tls::ALPN_CALL));

    let (shaken, .., dials, dialed) = connect(exactly(&caller), exactly(&caller));
    assert!(matches!(shaken, Err((_, false))), "{shaken:?}");
    assert!(matches!(dials.refused(), Some(ProgramRefusal::Program { .. })));
    assert_eq!(dialed.refused(), None);
    let (shaken, .., dialed) = connect(exactly(&callee), exactly(&callee));
    assert!(matches!(shaken, Err((_, true))), "{shaken:?}");
    assert!(matches!(dialed.refused(), Some(ProgramRefusal::Program { .. })));
}
