//! Who is who, in certificates: the cluster's authority, its hosts, and the programs of those.
//!
//! The authority certifies hosts ([`authority`]); a host certifies its programs ([`program`]), so that no
//! program waits for a gateway and an evicted host's programs are out with it. [`trust`] decides whom to
//! believe, as plain functions of certificates and a time; [`tls`] lets two programs do so in TLS 1.3. All
//! keys are ECDSA P-256.
//!
//! Files, sockets and clocks are the business of others. Programs that speak to programs of other hosts
//! link this crate, so it knows nothing of the control plane.

pub mod authority;
mod key;
pub mod program;
pub mod tls;
pub mod trust;
mod verifier;

pub use authority::{
    AUTHORITY_MS, Authority, AuthorityError, BACKDATED_MS, NODE_MS, Peer, PeerError, RENEW_LEFT_MS,
    cluster_of, is_pair, is_signed_by, new_request, node_uri,
};
pub use key::{KeyId, KeyIdError, hash_of_hex, sha256};
pub use program::{Program, ProgramId, ProgramIssuer, ProgramKey, ProgramPeer};
pub use tls::ProgramTls;
pub use trust::{Evicted, Trust};
pub use verifier::Verifier;
