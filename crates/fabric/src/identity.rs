//! What a host knows about itself: its cluster, its names, its certificate, and gateways to begin with.
//!
//! It stands in a directory of its own, `<state>/fabric`. Where that has no `node.json` the host belongs
//! to no cluster. A new identity is written beside it and takes its place by one rename; later each
//! change is the rename of one file. So a kill at any moment leaves what was there before, or what was
//! to be. The certificate and its key share a file because they change together.
//!
//! | file | holds |
//! |---|---|
//! | `node.json` | names, role, addresses, labels, gateways |
//! | `node.pem` | the certificate of this node, and its private key |
//! | `ca.crt` | the certificate of the cluster's authority |
//! | `ca.key` | the private key of that; on gateways only |

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kumo_abi::cluster::Role;
use kumo_abi::{ClusterName, DcName, HostId, HostName};
use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde::{Deserialize, Deserializer, Serialize};

use crate::pki::{self, Authority, AuthorityError, Peer, PeerError};

/// Where gateways listen for other hosts unless told otherwise.
pub const FABRIC_PORT_DEFAULT: u16 = 7081;

/// Largest file that is read: [`GATEWAYS_MAX`] gateways with as many and as long addresses as they may
/// have take half of it.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Most gateways that a host keeps. Each costs every other gateway a link.
pub const GATEWAYS_MAX: usize = 1_000;

/// Most addresses of one gateway that a host keeps: networks that it is in, by two families.
pub const GATEWAY_ADDRESSES_MAX: usize = 8;

/// Most labels of a host; every host of the cluster keeps them.
pub const LABELS_MAX: usize = 64;

/// Longest value of a label.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;

/// Version of `node.json`.
const NODE_VERSION: u32 = 1;

const NODE_FILE: &str = "node.json";
const PAIR_FILE: &str = "node.pem";
const CA_FILE: &str = "ca.crt";
const CA_KEY_FILE: &str = "ca.key";

/// A gateway and where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Its name.
    pub host: HostId,
    /// As [`check_address`] wants them, the best first.
    pub addresses: Vec<String>,
}

impl Gateway {
    /// A gateway as its card tells of it: with those addresses that are some, the first
    /// [`GATEWAY_ADDRESSES_MAX`]. A card may say anything, and what is kept must load again.
    pub fn of_card(host: HostId, addresses: &[String]) -> Gateway {
        let fits = addresses.iter().filter(|address| check_address(address).is_ok());
        Gateway { host, addresses: fits.take(GATEWAY_ADDRESSES_MAX).cloned().collect() }
    }
}

/// At most [`GATEWAYS_MAX`] of `gateways`, those of the data centre `home` before others, in order.
pub fn limited(mut gateways: Vec<Gateway>, home: &DcName) -> Vec<Gateway> {
    if gateways.len() > GATEWAYS_MAX {
        gateways.sort_by(|a, b| (a.host.dc != *home, &a.host).cmp(&(b.host.dc != *home, &b.host)));
        gateways.truncate(GATEWAYS_MAX);
    }
    gateways.sort_by(|a, b| a.host.cmp(&b.host));
    gateways
}

/// What a host of a cluster knows about itself.
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name there.
    pub host: HostId,
    /// What it is to the others.
    pub role: Role,
    /// The certificate of the cluster's authority.
    pub ca: CertificateDer<'static>,
    /// Its own certificate.
    pub certificate: CertificateDer<'static>,
    /// The private key of that.
    pub key: PrivateKeyDer<'static>,
    /// Where it listens for other hosts; `None` for members.
    pub listen: Option<SocketAddr>,
    /// Where others reach it, as [`check_address`] wants them; empty for members.
    pub advertise: Vec<String>,
    /// Where it listens for calls of other hosts; `None` where calls come through gateways only.
    pub call_listen: Option<SocketAddr>,
    /// Where others reach it for calls, as [`check_address`] wants them.
    pub call_advertise: Vec<String>,
    /// The other gateways that it knows.
    pub gateways: Vec<Gateway>,
    /// What its owner says about it.
    pub labels: BTreeMap<String, String>,
}

impl Clone for Identity {
    fn clone(&self) -> Identity {
        Identity {
            cluster: self.cluster.clone(),
            host: self.host.clone(),
            role: self.role,
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            listen: self.listen,
            advertise: self.advertise.clone(),
            call_listen: self.call_listen,
            call_advertise: self.call_advertise.clone(),
            gateways: self.gateways.clone(),
            labels: self.labels.clone(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key, which belongs in no log.
        f.debug_struct("Identity")
            .field("cluster", &self.cluster)
            .field("host", &self.host)
            .field("role", &self.role)
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .field("call_listen", &self.call_listen)
            .field("call_advertise", &self.call_advertise)
            .field("gateways", &self.gateways)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// Why an identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What the system says about a file.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not what we write.
    #[error("{} cannot be read: {what}; restore it, or `kumo leave` and join again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Others could have copied the key.
    #[error(
        "{} may be read by others (mode {mode:o}); `chmod 600` it, or if somebody may have done so \
         `kumo evict` this host and join again", path.display()
    )]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// There is one already.
    #[error(
        "this host is {host} of the cluster `{cluster}` already; `kumo leave` takes it out of there"
    )]
    Member {
        /// Its name.
        host: HostId,
        /// Its cluster.
        cluster: ClusterName,
    },
    /// The files are of another identity than the node that wants to change them. Nothing was changed.
    #[error(
        "{} is that of {host} in `{cluster}` now, which this node is not; restart the node",
        path.display()
    )]
    Another {
        /// The directory.
        path: PathBuf,
        /// Who it is of.
        host: HostId,
        /// In which cluster.
        cluster: ClusterName,
    },
    /// There is none.
    #[error("this host belongs to no cluster; `kumo init` makes one, `kumo join` joins one")]
    Alone,
    /// A certificate could not be made.
    #[error("cannot make an identity")]
    Make(#[from] AuthorityError),
}

impl IdentityError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
        let path = path.to_owned();
        move |source| IdentityError::File { path, source }
    }

    fn damaged(path: &Path, what: impl fmt::Display) -> IdentityError {
        IdentityError::Damaged { path: path.to_owned(), what: what.to_string() }
    }
}

/// `node.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    version: u32,
    cluster: ClusterName,
    dc: DcName,
    host: HostName,
    role: Role,
    listen: Option<SocketAddr>,
    advertise: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    call_listen: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    call_advertise: Vec<String>,
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "gateways_that_fit")]
    gateways: Vec<Gateway>,
}

/// Passes over those that cannot be read: they came from others, and one of them must not keep this host
/// from its cluster. The rest tells of it again.
fn gateways_that_fit<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Gateway>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(from)?;
    let mut fit = Vec::new();
    for value in all {
        let gateway = Gateway::deserialize(&value).map_err(|error| error.to_string());
        let checked = gateway.and_then(|gateway| {
            let mut addresses = gateway.addresses.iter();
            addresses.try_for_each(|a| check_address(a)).map_err(|error| error.to_string())?;
            Ok(gateway)
        });
        match checked {
            Ok(gateway) => fit.push(gateway),
            Err(error) => tracing::warn!(
                "a gateway in {NODE_FILE} is passed over: {}",
                error.escape_default()
            ),
        }
    }
    Ok(fit)
}

impl Identity {
    /// A new identity with a new key, certified by `authority`. It listens nowhere and knows nobody.
    ///
    /// # Errors
    /// The system has no randomness, or no time.
    pub fn issue(
        authority: &Authority,
        host: &HostId,
        role: Role,
        now_ms: u64,
    ) -> Result<Identity, AuthorityError> {
        let (key, csr) = pki::new_request()?;
        Ok(Identity {
            cluster: authority.cluster().clone(),
            host: host.clone(),
            role,
            ca: authority.certificate().clone(),
            certificate: authority.issue(&csr, host, role, now_ms)?,
            key,
            listen: None,
            advertise: Vec::new(),
            call_listen: None,
            call_advertise: Vec::new(),
            gateways: Vec::new(),
            labels: BTreeMap::new(),
        })
    }

    /// What its certificate says.
    ///
    /// # Errors
    /// As [`Peer::of`]; not for an identity that was loaded.
    pub fn peer(&self) -> Result<Peer, PeerError> {
        Peer::of(&self.certificate)
    }

    /// Itself as others list it, when it is a gateway.
    pub fn as_gateway(&self) -> Option<Gateway> {
        let gateway = || Gateway { host: self.host.clone(), addresses: self.advertise.clone() };
        (self.role == Role::Gateway).then(gateway)
    }

    /// Reads the identity in `dir`; `None` when there is none, so that this host is its own. Whether the
    /// certificate has expired is not looked at.
    ///
    /// # Errors
    /// Files that are damaged, do not belong together or can be read by others: see [`IdentityError`].
    pub fn load(dir: &Path) -> Result<Option<Identity>, IdentityError> {
        let Some(node) = load_node(dir)? else { return Ok(None) };
        let ca_path = dir.join(CA_FILE);
        let ca = certificate(&ca_path, &blocks(&ca_path)?)?;
        match pki::cluster_of(&ca) {
            Ok(cluster) if cluster == node.cluster => {}
            Ok(cluster) => {
                let what =
                    format!("it is of the cluster `{cluster}`, and this is `{}`", node.cluster);
                return Err(IdentityError::damaged(&ca_path, what));
            }
            Err(error) => return Err(IdentityError::damaged(&ca_path, error)),
        }
        let pair_path = dir.join(PAIR_FILE);
        check_secret(&pair_path)?;
        let pair = blocks(&pair_path)?;
        let certificate = certificate(&pair_path, &pair)?;
        let key = private_key(&pair_path, &pair)?;
        let host = HostId { dc: node.dc, host: node.host };
        let damaged = |what: &dyn fmt::Display| Err(IdentityError::damaged(&pair_path, what));
        match Peer::of(&certificate) {
            Err(error) => return damaged(&error),
            Ok(peer)
                if (&peer.cluster, &peer.host, peer.role) != (&node.cluster, &host, node.role) =>
            {
                let what =
                    format!("it is of {} {} in `{}`", peer.role.name(), peer.host, peer.cluster);
                return damaged(&what);
            }
            Ok(_) if !pki::is_signed_by(&certificate, &ca) => {
                return damaged(&format_args!("it was not issued by the authority in {CA_FILE}"));
            }
            Ok(_) if !pki::is_pair(&certificate, &key) => {
                return damaged(&"its key is not that of its certificate");
            }
            Ok(_) => {}
        }
        Ok(Some(Identity {
            cluster: node.cluster,
            host,
            role: node.role,
            ca,
            certificate,
            key,
            listen: node.listen,
            advertise: node.advertise,
            call_listen: node.call_listen,
            call_advertise: node.call_advertise,
            gateways: node.gateways,
            labels: node.labels,
        }))
    }

    /// Writes it to `dir`, where none may be, with the key of the authority on gateways. The directory
    /// above is made for us alone where it is missing. On the disk when it returns.
    ///
    /// # Errors
    /// There is an identity already, or what the system says; then there is no new one.
    pub fn save(&self, dir: &Path, authority: Option<&Authority>) -> Result<(), IdentityError> {
        refuse_second(dir)?;
        create_private(parent(dir))?;
        let new = sibling(dir, &format!("new-{}", std::process::id()));
        remove_leftovers(dir)?;
        DirBuilder::new().mode(0o700).create(&new).map_err(IdentityError::file(&new))?;
        if let Some(authority) = authority {
            write(&new, CA_KEY_FILE, &pem_of_key(&authority.key()))?;
        }
        write(&new, CA_FILE, &pem_of_certificate(&self.ca))?;
        write(&new, PAIR_FILE, &pair(&self.certificate, &self.key))?;
        write(&new, NODE_FILE, &self.node_file())?;
        refuse_second(dir)?;
        match fs::rename(&new, dir) {
            Ok(()) => {}
            // A store without an identity: nothing of a cluster, and not ours to remove.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                move_aside(dir, "old")?;
                fs::rename(&new, dir).map_err(IdentityError::file(dir))?;
            }
            Err(error) => return Err(IdentityError::file(dir)(error)),
        }
        sync_parent(dir)
    }

    fn node_file(&self) -> String {
        node_text(&NodeFile {
            version: NODE_VERSION,
            cluster: self.cluster.clone(),
            dc: self.host.dc.clone(),
            host: self.host.host.clone(),
            role: self.role,
            listen: self.listen,
            advertise: self.advertise.clone(),
            call_listen: self.call_listen,
            call_advertise: self.call_advertise.clone(),
            labels: self.labels.clone(),
            gateways: self.gateways.clone(),
        })
    }
}

/// Writes which gateways the host `whose` knows, if that is news.
///
/// # Errors
/// [`IdentityError::Alone`], [`IdentityError::Another`] where the files are not of `whose`, or what the
/// system says; then the file is as it was.
pub fn save_gateways(
    dir: &Path,
    whose: &Identity,
    gateways: &[Gateway],
) -> Result<(), IdentityError> {
    let mut node = load_node_of(dir, &whose.cluster, &whose.host)?;
    if node.gateways == gateways {
        return Ok(());
    }
    node.gateways = gateways.to_vec();
    write(dir, NODE_FILE, &node_text(&node))
}

/// Replaces the certificate and its key, both or none.
///
/// # Errors
/// [`IdentityError::Alone`], [`IdentityError::Another`] where the files are not those of the host that
/// the certificate names, or what the system says; then the file is as it was.
pub fn save_certificate(
    dir: &Path,
    certificate: &CertificateDer<'_>,
    key: &PrivateKeyDer<'_>,
) -> Result<(), IdentityError> {
    let pair_path = dir.join(PAIR_FILE);
    let damaged = |what: &dyn fmt::Display| IdentityError::damaged(&pair_path, what);
    let peer = Peer::of(certificate).map_err(|error| damaged(&error))?;
    load_node_of(dir, &peer.cluster, &peer.host)?;
    write(dir, PAIR_FILE, &pair(certificate, key))
}

/// Makes this host able to issue certificates for its cluster.
///
/// # Errors
/// The authority is of another cluster, or what the system says; then the file is as it was.
pub fn save_authority(dir: &Path, authority: &Authority) -> Result<(), IdentityError> {
    let path = dir.join(CA_FILE);
    if certificate(&path, &blocks(&path)?)? != *authority.certificate() {
        return Err(IdentityError::damaged(
            &path,
            "it is not that of the authority to be kept here",
        ));
    }
    write(dir, CA_KEY_FILE, &pem_of_key(&authority.key()))
}

/// The authority of the cluster, on hosts that have its key.
///
/// # Errors
/// Files that are damaged, do not belong together or can be read by others.
pub fn load_authority(dir: &Path) -> Result<Option<Authority>, IdentityError> {
    let key_path = dir.join(CA_KEY_FILE);
    if !exists(&key_path)? {
        return Ok(None);
    }
    check_secret(&key_path)?;
    let ca_path = dir.join(CA_FILE);
    let certificate = certificate(&ca_path, &blocks(&ca_path)?)?;
    let key = private_key(&key_path, &blocks(&key_path)?)?;
    let authority = Authority::load(certificate, &key);
    Ok(Some(authority.map_err(|error| IdentityError::damaged(&key_path, error))?))
}

/// Moves the identity and what the host knew of its cluster aside, and says where to. Nothing is
/// deleted: a gateway may have held the only key of the authority.
///
/// # Errors
/// [`IdentityError::Alone`], or what the system says; then nothing was moved.
pub fn leave(dir: &Path) -> Result<PathBuf, IdentityError> {
    if !exists(&dir.join(NODE_FILE))? {
        return Err(IdentityError::Alone);
    }
    let aside = move_aside(dir, "left")?;
    sync_parent(dir)?;
    Ok(aside)
}

fn load_node(dir: &Path) -> Result<Option<NodeFile>, IdentityError> {
    let path = dir.join(NODE_FILE);
    if !exists(&path)? {
        return Ok(None);
    }
    let node: NodeFile = serde_json::from_str(&read(&path)?)
        .map_err(|error| IdentityError::damaged(&path, error))?;
    if node.version != NODE_VERSION {
        let what = format!("it has version {}, and this kumo reads {NODE_VERSION}", node.version);
        return Err(IdentityError::damaged(&path, what));
    }
    for address in node.advertise.iter().chain(&node.call_advertise) {
        check_address(address).map_err(|error| IdentityError::damaged(&path, error))?;
    }
    Ok(Some(node))
}

/// `node.json`, if it is that of `host` in `cluster`: a node may outlive `kumo leave` and another join.
fn load_node_of(
    dir: &Path,
    cluster: &ClusterName,
    host: &HostId,
) -> Result<NodeFile, IdentityError> {
    let node = load_node(dir)?.ok_or(IdentityError::Alone)?;
    let found = HostId { dc: node.dc.clone(), host: node.host.clone() };
    if (&node.cluster, &found) != (cluster, host) {
        let (path, cluster) = (dir.to_owned(), node.cluster);
        return Err(IdentityError::Another { path, host: found, cluster });
    }
    Ok(node)
}

fn refuse_second(dir: &Path) -> Result<(), IdentityError> {
    match load_node(dir)? {
        None => Ok(()),
        Some(NodeFile { cluster, dc, host, .. }) => {
            Err(IdentityError::Member { host: HostId { dc, host }, cluster })
        }
    }
}

fn node_text(node: &NodeFile) -> String {
    serde_json::to_string_pretty(node).expect("it has no map with keys that are no text") + "\n"
}

fn exists(path: &Path) -> Result<bool, IdentityError> {
    path.try_exists().map_err(IdentityError::file(path))
}

fn read(path: &Path) -> Result<String, IdentityError> {
    let mut text = String::new();
    let file = File::open(path).map_err(IdentityError::file(path))?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(IdentityError::file(path))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(IdentityError::damaged(path, "it is too big"));
    }
    Ok(text)
}

fn check_secret(path: &Path) -> Result<(), IdentityError> {
    let others = 0o077;
    let mode = fs::metadata(path).map_err(IdentityError::file(path))?.mode() & 0o7777;
    if mode & others == 0 {
        return Ok(());
    }
    Err(IdentityError::Exposed { path: path.to_owned(), mode })
}

fn blocks(path: &Path) -> Result<Vec<Pem>, IdentityError> {
    pem::parse_many(read(path)?).map_err(|error| IdentityError::damaged(path, error))
}

fn only<'a>(path: &Path, blocks: &'a [Pem], tag: &str) -> Result<&'a [u8], IdentityError> {
    let mut found = blocks.iter().filter(|block| block.tag() == tag);
    match (found.next(), found.next()) {
        (Some(block), None) => Ok(block.contents()),
        (None, _) => Err(IdentityError::damaged(path, format_args!("it holds no {tag}"))),
        _ => Err(IdentityError::damaged(path, format_args!("it holds more than one {tag}"))),
    }
}

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

fn certificate(path: &Path, blocks: &[Pem]) -> Result<CertificateDer<'static>, IdentityError> {
    Ok(only(path, blocks, CERTIFICATE)?.to_vec().into())
}

fn private_key(path: &Path, blocks: &[Pem]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    Ok(PrivatePkcs8KeyDer::from(only(path, blocks, PRIVATE_KEY)?.to_vec()).into())
}

fn pem_of(tag: &str, der: &[u8]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(tag, der), lines)
}

fn pem_of_certificate(certificate: &CertificateDer<'_>) -> String {
    pem_of(CERTIFICATE, certificate)
}

fn pem_of_key(key: &PrivateKeyDer<'_>) -> String {
    pem_of(PRIVATE_KEY, key.secret_der())
}

fn pair(certificate: &CertificateDer<'_>, key: &PrivateKeyDer<'_>) -> String {
    pem_of_certificate(certificate) + &pem_of_key(key)
}

/// Writes a file that only we can read, on the disk, in place of what had its name.
///
/// # Errors
/// What the system says; then the file is as it was.
pub(crate) fn write(dir: &Path, name: &str, text: &str) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let new = dir.join(format!("{name}.new"));
    let failed = IdentityError::file(&path);
    let write = || {
        // One that a killed writer left may have another mode.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(failed)
}

/// `fabric` → `fabric.left-1`.
fn sibling(dir: &Path, what: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}"));
    dir.with_file_name(name)
}

fn move_aside(dir: &Path, what: &str) -> Result<PathBuf, IdentityError> {
    let mut free = (1..).map(|number| sibling(dir, &format!("{what}-{number}")));
    let aside = free.find(|path| fs::symlink_metadata(path).is_err()).expect("numbers do not end");
    fs::rename(dir, &aside).map_err(IdentityError::file(dir))?;
    Ok(aside)
}

/// What writers left that were killed: keys of identities that never were.
fn remove_leftovers(dir: &Path) -> Result<(), IdentityError> {
    let parent = parent(dir);
    let prefix = sibling(dir, "new-");
    let prefix = prefix.file_name().unwrap_or_default().as_encoded_bytes();
    for entry in fs::read_dir(parent).map_err(IdentityError::file(parent))? {
        let entry = entry.map_err(IdentityError::file(parent))?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix) {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(IdentityError::file(&path))?;
        }
    }
    Ok(())
}

fn create_private(dir: &Path) -> Result<(), IdentityError> {
    fs::create_dir_all(parent(dir)).map_err(IdentityError::file(parent(dir)))?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(IdentityError::file(dir)(error))
        }
        _ => Ok(()),
    }
}

fn sync_parent(dir: &Path) -> Result<(), IdentityError> {
    let parent = parent(dir);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(IdentityError::file(parent))
}

fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no address; write HOST:PORT, as in 192.0.2.7:7081, [2001:db8::7]:7081 or gw.example:7081", .0.escape_default())]
pub struct AddressError(String);

/// Checks that a text is the address of a gateway: a DNS name or an IP address, `:`, and a port.
///
/// # Errors
/// It is not.
pub fn check_address(text: &str) -> Result<(), AddressError> {
    let wrong = || AddressError(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let (host, bracketed) = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => (host, true),
        None => (host, false),
    };
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let fits = match ServerName::try_from(host) {
        Ok(ServerName::IpAddress(rustls::pki_types::IpAddr::V6(_))) => bracketed,
        Ok(_) => !bracketed,
        Err(_) => false,
    };
    if fits && port != 0 { Ok(()) } else { Err(wrong()) }
}

/// Why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// No `=`.
    #[error("a label is written KEY=VALUE, as in rack=3")]
    Form,
    /// The key.
    #[error(
        "the key of a label is 1 to {} of a-z, 0-9, `-`, `_`, `.` and `/`",
        kumo_abi::NAME_BYTES_MAX
    )]
    Key,
    /// The value.
    #[error(
        "the value of a label has at most {LABEL_VALUE_BYTES_MAX} bytes, and no control characters"
    )]
    Value,
}

/// Reads a label: `rack=3`.
///
/// # Errors
/// See [`LabelError`].
pub fn label(text: &str) -> Result<(String, String), LabelError> {
    let (key, value) = text.split_once('=').ok_or(LabelError::Form)?;
    check_label(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Checks the two parts of a label.
///
/// # Errors
/// See [`LabelError`].
pub fn check_label(key: &str, value: &str) -> Result<(), LabelError> {
    let fits = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.' | '/');
    if key.is_empty() || key.len() > kumo_abi::NAME_BYTES_MAX || !key.chars().all(fits) {
        return Err(LabelError::Key);
    }
    if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
        return Err(LabelError::Value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn authority() -> Authority {
        Authority::create(&"acme".parse().expect("a name"), NOW_MS).expect("an authority")
    }

    fn gateway(authority: &Authority) -> Identity {
        let host = "tokyo/a".parse().expect("a host");
        let made = Identity::issue(authority, &host, Role::Gateway, NOW_MS).expect("issued");
        Identity {
            listen: Some("0.0.0.0:7081".parse().expect("an address")),
            advertise: vec!["192.0.2.1:7081".to_owned()],
            labels: BTreeMap::from([("rack".to_owned(), "3".to_owned())]),
            ..made
        }
    }

    fn others() -> Vec<Gateway> {
        let host = "osaka/a".parse().expect("a host");
        vec![Gateway { host, addresses: vec!["gw.example:7081".to_owned()] }]
    }

    #[test]
    fn it_is_read_back() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = world.path().join("state/kumo/fabric");
        assert!(Identity::load(&dir).expect("no files, no error").is_none());
        let authority = authority();
        let made = gateway(&authority);
        assert!(matches!(save_gateways(&dir, &made, &others()), Err(IdentityError::Alone)));
        made.save(&dir, Some(&authority)).expect("saved");
        let read = Identity::load(&dir).expect("good files").expect("an identity");
        assert_eq!(format!("{read:?}"), format!("{made:?}"));
        assert_eq!(
            (&read.certificate, &read.key, &read.ca),
            (&made.certificate, &made.key, &made.ca)
        );
        let loaded = load_authority(&dir).expect("good files").expect("its key");
        assert_eq!(loaded.hash(), authority.hash());
        for name in [NODE_FILE, PAIR_FILE, CA_FILE, CA_KEY_FILE] {
            let mode = fs::metadata(dir.join(name)).expect("a file").mode() & 0o7777;
            assert_eq!(mode, 0o600, "of {name}");
        }
        for private in [dir.as_path(), parent(&dir)] {
            assert_eq!(fs::metadata(private).expect("a directory").mode() & 0o7777, 0o700);
        }

        save_gateways(&dir, &made, &others()).expect("saved");
        let renewed = gateway(&authority);
        save_certificate(&dir, &renewed.certificate, &renewed.key).expect("saved");
        let read = Identity::load(&dir).expect("good files").expect("an identity");
        assert_eq!((read.gateways, read.key), (others(), renewed.key));
    }

    #[test]
    fn a_host_is_in_one_cluster_at_a_time() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = world.path().join("fabric");
        let authority = authority();
        gateway(&authority).save(&dir, Some(&authority)).expect("saved");
        let again = gateway(&authority).save(&dir, None).expect_err("there is one");
        let said = again.to_string();
        assert!(said.contains("tokyo/a") && said.contains("kumo leave"), "{said}");
        for number in 1..3 {
            let aside = leave(&dir).expect("left");
            assert_eq!(aside, world.path().join(format!("fabric.left-{number}")));
            assert!(load_authority(&aside).expect("nothing is lost").is_some());
            assert!(matches!(leave(&dir), Err(IdentityError::Alone)));
            gateway(&authority).save(&dir, Some(&authority)).expect("joined anew");
        }
    }

    #[test]
    fn a_node_that_outlived_its_identity_writes_nothing_into_the_next() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = world.path().join("fabric");
        let authority = authority();
        let before = gateway(&authority);
        let host = "tokyo/b".parse().expect("a host");
        let next = Identity::issue(&authority, &host, Role::Member, NOW_MS).expect("issued");
        before.save(&dir, Some(&authority)).expect("saved");
        leave(&dir).expect("left");
        let gone = save_certificate(&dir, &before.certificate, &before.key);
        assert!(matches!(gone, Err(IdentityError::Alone)), "{gone:?}");
        next.save(&dir, None).expect("joined anew");
        for refused in [
            save_certificate(&dir, &before.certificate, &before.key),
            save_gateways(&dir, &before, &others()),
        ] {
            assert!(matches!(refused, Err(IdentityError::Another { .. })), "{refused:?}");
        }
        let read = Identity::load(&dir).expect("good files").expect("an identity");
        assert_eq!((read.certificate, read.gateways), (next.certificate, Vec::new()));
    }

    #[test]
    fn bad_gateways_are_passed_over() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = world.path().join("fabric");
        let authority = authority();
        let made = Identity { gateways: others(), ..gateway(&authority) };
        made.save(&dir, Some(&authority)).expect("saved");
        let path = dir.join(NODE_FILE);
        let text = fs::read_to_string(&path).expect("a file");
        let mut node: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let bad = [
            serde_json::json!({"host": {"dc": "osaka", "host": "b"}, "addresses": ["nowhere"]}),
            serde_json::json!({"host": {"dc": "*", "host": "b"}, "addresses": []}),
            serde_json::json!(7),
        ];
        node["gateways"].as_array_mut().expect("a list").extend(bad);
        fs::write(&path, node.to_string()).expect("a file");
        let read = Identity::load(&dir).expect("it starts").expect("an identity");
        assert_eq!(read.gateways, others());
    }

    #[test]
    fn whatever_cards_say_loads_again() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = world.path().join("fabric");
        let authority = authority();
        let made = gateway(&authority);
        made.save(&dir, Some(&authority)).expect("saved");
        let label = "x".repeat(63);
        let long = format!("{label}.{label}.{label}.{}:65535", &label[..61]);
        check_address(&long).expect("an address");
        let mut said = vec!["nowhere".to_owned(), "\u{1b}[2J".to_owned()];
        said.extend(vec![long; 3 * GATEWAY_ADDRESSES_MAX]);
        let of = |dc: &str, number: usize| {
            Gateway::of_card(format!("{dc}/h{number:04}").parse().expect("a host"), &said)
        };
        assert_eq!(of("osaka", 1).addresses.len(), GATEWAY_ADDRESSES_MAX);
        let mut all: Vec<Gateway> =
            (0..2 * GATEWAYS_MAX).map(|number| of("osaka", number)).collect();
        all.push(of("tokyo", 1));
        let kept = limited(all, &made.host.dc);
        assert_eq!(kept.len(), GATEWAYS_MAX);
        assert!(kept.iter().any(|gateway| gateway.host.dc == made.host.dc), "the near ones first");
        assert!(kept.is_sorted_by_key(|gateway| &gateway.host));
        save_gateways(&dir, &made, &kept).expect("saved");
        let read = Identity::load(&dir).expect("it starts").expect("an identity");
        assert_eq!(read.gateways, kept);
    }

    /// Every state that a kill can leave: the files that are there after so many steps of a write.
    #[test]
    fn a_kill_between_any_two_writes_leaves_what_loads() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = world.path().join("fabric");
        let authority = authority();
        // Killed while a new identity is written beside: the host is its own, and the next one cleans up.
        let new = world.path().join("fabric.new-1");
        for name in [CA_KEY_FILE, CA_FILE, PAIR_FILE, NODE_FILE] {
            fs::create_dir_all(&new).expect("a directory");
            fs::write(new.join(name), "half of it").expect("a file");
            assert!(Identity::load(&dir).expect("no files, no error").is_none());
        }
        // Killed between the two renames around a directory that held a store.
        fs::create_dir(&dir).expect("a directory");
        fs::write(dir.join("store.redb"), "bytes").expect("a file");
        assert!(Identity::load(&dir).expect("no identity, no error").is_none());
        gateway(&authority).save(&dir, Some(&authority)).expect("saved");
        assert!(!new.exists() && world.path().join("fabric.old-1/store.redb").exists());
        // Killed before the rename of a file.
        let before = Identity::load(&dir).expect("good files").expect("an identity");
        for name in [CA_KEY_FILE, CA_FILE, PAIR_FILE, NODE_FILE] {
            fs::write(dir.join(format!("{name}.new")), "half of it").expect("a file");
            let read = Identity::load(&dir).expect("good files").expect("an identity");
            assert_eq!(read.certificate, before.certificate);
            assert!(load_authority(&dir).expect("good files").is_some());
        }
        save_gateways(&dir, &before, &others()).expect("saved over what was left");
        let renewed = gateway(&authority);
        save_certificate(&dir, &renewed.certificate, &renewed.key).expect("the same");
        save_authority(&dir, &authority).expect("the same");
        let read = Identity::load(&dir).expect("good files").expect("an identity");
        assert_eq!((read.gateways, read.certificate), (others(), renewed.certificate));
    }

    #[test]
    fn damaged_files_are_named() {
        let world = tempfile::tempdir().expect("a directory");
        let dir = world.path().join("fabric");
        let (authority, other) = (authority(), self::authority());
        gateway(&authority).save(&dir, Some(&authority)).expect("saved");
        let good = |name: &str| fs::read_to_string(dir.join(name)).expect("a file");
        let stranger = gateway(&other);
        let cases = [
            (NODE_FILE, good(NODE_FILE).replace("\"role\"", "\"rule\""), "rule"),
            (NODE_FILE, good(NODE_FILE).replace("\"version\": 1", "\"version\": 2"), "version 2"),
            (NODE_FILE, good(NODE_FILE).replace("\"gateway\"", "\"member\""), "gateway tokyo/a"),
            (NODE_FILE, good(NODE_FILE).replace("acme", "beta"), "of the cluster `acme`"),
            (NODE_FILE, good(NODE_FILE).replace("192.0.2.1:7081", "192.0.2.1"), "no address"),
            (NODE_FILE, " ".repeat(FILE_BYTES_MAX as usize + 1), "too big"),
            (PAIR_FILE, String::new(), "no CERTIFICATE"),
            (PAIR_FILE, pem_of_certificate(&stranger.certificate), "no PRIVATE KEY"),
            (PAIR_FILE, pair(&stranger.certificate, &stranger.key), "not issued by"),
            (PAIR_FILE, pair(&gateway(&authority).certificate, &stranger.key), "not that of"),
            (PAIR_FILE, good(PAIR_FILE) + &good(PAIR_FILE), "more than one"),
            (CA_FILE, pem_of_certificate(&stranger.certificate), "authority"),
        ];
        for (name, text, want) in cases {
            let kept = good(name);
            fs::write(dir.join(name), text).expect("a file");
            let error = Identity::load(&dir).expect_err("damaged").to_string();
            fs::write(dir.join(name), kept).expect("a file");
            assert!(error.contains(want), "{error:?} does not say {want:?}");
        }
        Identity::load(&dir).expect("as it was");
        fs::set_permissions(dir.join(PAIR_FILE), fs::Permissions::from_mode(0o640))
            .expect("a mode");
        assert!(matches!(Identity::load(&dir), Err(IdentityError::Exposed { mode: 0o640, .. })));
        assert!(save_authority(&dir, &other).is_err(), "the authority of another cluster");
    }

    #[test]
    fn addresses() {
        for good in ["192.0.2.7:7081", "[2001:db8::7]:1", "gw-1.example:65535", "localhost:7081"] {
            assert_eq!(check_address(good), Ok(()), "for {good}");
        }
        for bad in [
            "",
            ":1",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a b:1",
            "2001:db8::7:1",
            "[a]:1",
            "a/b:1",
            "[::1]",
        ] {
            assert!(check_address(bad).is_err(), "for {bad}");
        }
    }

    #[test]
    fn labels() {
        assert_eq!(label("rack=3"), Ok(("rack".to_owned(), "3".to_owned())));
        assert_eq!(label("note=a=b"), Ok(("note".to_owned(), "a=b".to_owned())));
        assert_eq!(label("rack"), Err(LabelError::Form));
        for bad in ["=3", "Rack=3", "a b=3", &format!("{}=1", "k".repeat(64))] {
            assert_eq!(label(bad), Err(LabelError::Key), "for {bad}");
        }
        assert_eq!(label("a=\x1b[2J"), Err(LabelError::Value));
        assert_eq!(label(&format!("a={}", "v".repeat(256))), Err(LabelError::Value));
    }
}
