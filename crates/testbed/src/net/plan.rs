//! What a network shall be, and the commands that make it. Pure.
//!
//! Each data centre is a network namespace with a bridge, `lan`, that its hosts are plugged into; it
//! routes between that and the backbone, which is a bridge in a namespace of its own. So a host has
//! one cable, and a data centre has one; cutting either is taking down one end of a `veth` pair.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use kumo_abi::{DcName, HostId, HostName};

/// Most data centres: what fits is far more, but a laptop holds no more nodes than these have.
pub const DCS_MAX: usize = 16;

/// Most hosts of a data centre: the last byte of their address, less those of the router and of
/// broadcast.
pub const HOSTS_MAX: usize = 200;

/// Names for data centres, in the order they are given out.
const DC_NAMES: [&str; DCS_MAX] = [
    "tokyo",
    "osaka",
    "nagoya",
    "sapporo",
    "fukuoka",
    "sendai",
    "kyoto",
    "kobe",
    "hiroshima",
    "naha",
    "niigata",
    "kanazawa",
    "okayama",
    "takamatsu",
    "matsuyama",
    "kagoshima",
];

/// The data centres of a world, and their hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// At least one, at most [`DCS_MAX`], each name once.
    pub dcs: Vec<DcPlan>,
}

/// One data centre.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DcPlan {
    /// Its name.
    pub name: DcName,
    /// At least one, at most [`HOSTS_MAX`], each name once; the gateways come first.
    pub hosts: Vec<HostName>,
    /// How many of the hosts are gateways: at least one.
    pub gateways: usize,
    /// How long every packet to or from the backbone waits, on each way.
    pub delay: Duration,
}

/// Why there is no such world.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Too few or too many data centres.
    #[error("a world has 1 to {DCS_MAX} data centres, not {0}")]
    Dcs(usize),
    /// Too few or too many hosts.
    #[error("a data centre has 1 to {HOSTS_MAX} hosts, not {0}")]
    Hosts(usize),
    /// No gateway, or more than there are hosts.
    #[error("a data centre with {hosts} hosts has 1 to {hosts} gateways, not {gateways}")]
    Gateways {
        /// Hosts of the data centre.
        hosts: usize,
        /// Gateways asked for.
        gateways: usize,
    },
    /// Two with one name.
    #[error("there are two of the name `{0}`")]
    Twice(String),
}

impl Plan {
    /// `dcs` data centres of `hosts` hosts each, with names: `tokyo/a`, `tokyo/b`, `osaka/a`.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn even(
        dcs: usize,
        hosts: usize,
        gateways: usize,
        delay: Duration,
    ) -> Result<Plan, PlanError> {
        if !(1..=DCS_MAX).contains(&dcs) {
            return Err(PlanError::Dcs(dcs));
        }
        if !(1..=HOSTS_MAX).contains(&hosts) {
            return Err(PlanError::Hosts(hosts));
        }
        let hosts: Vec<HostName> = (0..hosts).map(host_name).collect();
        let dc = |name: &&str| DcPlan {
            name: name.parse().expect("a name of ours is one"),
            hosts: hosts.clone(),
            gateways,
            delay,
        };
        let plan = Plan { dcs: DC_NAMES.iter().take(dcs).map(dc).collect() };
        plan.check()?;
        Ok(plan)
    }

    /// Whether such a world can be made.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn check(&self) -> Result<(), PlanError> {
        if !(1..=DCS_MAX).contains(&self.dcs.len()) {
            return Err(PlanError::Dcs(self.dcs.len()));
        }
        let mut seen = BTreeSet::new();
        for dc in &self.dcs {
            let hosts = dc.hosts.len();
            if !(1..=HOSTS_MAX).contains(&hosts) {
                return Err(PlanError::Hosts(hosts));
            }
            if !(1..=hosts).contains(&dc.gateways) {
                return Err(PlanError::Gateways { hosts, gateways: dc.gateways });
            }
            let names = dc.hosts.iter().map(|host| format!("{}/{host}", dc.name));
            for name in std::iter::once(dc.name.to_string()).chain(names) {
                if let Some(name) = seen.replace(name) {
                    return Err(PlanError::Twice(name));
                }
            }
        }
        Ok(())
    }

    /// All hosts, with whether each is a gateway.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, bool)> {
        self.dcs.iter().flat_map(|dc| {
            dc.hosts.iter().enumerate().map(|(i, host)| {
                (HostId { dc: dc.name.clone(), host: host.clone() }, i < dc.gateways)
            })
        })
    }

    /// The address of a host; `None` when the plan has no such host.
    pub fn address(&self, id: &HostId) -> Option<Ipv4Addr> {
        let (dc, host) = self.place(id)?;
        Some(host_address(dc, host))
    }

    /// The cable of a host; `None` when the plan has no such host.
    pub fn cable(&self, id: &HostId) -> Option<Cable> {
        let (_, host) = self.place(id)?;
        Some(Cable { at: Place::Dc(id.dc.clone()), interface: host_port(host) })
    }

    /// The cable of a data centre to the backbone; `None` when the plan has no such data centre.
    pub fn dc_cable(&self, name: &DcName) -> Option<Cable> {
        let dc = self.dcs.iter().position(|dc| dc.name == *name)?;
        Some(Cable { at: Place::Backbone, interface: dc_port(dc) })
    }

    fn place(&self, id: &HostId) -> Option<(usize, usize)> {
        let dc = self.dcs.iter().position(|dc| dc.name == id.dc)?;
        let host = self.dcs[dc].hosts.iter().position(|host| *host == id.host)?;
        Some((dc, host))
    }

    /// Every namespace of the world.
    pub(crate) fn places(&self) -> Vec<Place> {
        let dcs = self.dcs.iter().map(|dc| Place::Dc(dc.name.clone()));
        let hosts = self.hosts().map(|(id, _)| Place::Host(id));
        std::iter::once(Place::Backbone).chain(dcs).chain(hosts).collect()
    }

    /// Commands for `ip`, run in order in the namespace that each is for. `namespace` names those.
    pub(crate) fn commands(&self, namespace: &dyn Fn(&Place) -> String) -> Vec<(Place, String)> {
        let mut commands = Vec::new();
        let mut add = |at: &Place, command: String| commands.push((at.clone(), command));
        let backbone = Place::Backbone;
        add(&backbone, "link add core type bridge".to_owned());
        add(&backbone, "link set core up".to_owned());
        for (i, dc) in self.dcs.iter().enumerate() {
            let router = Place::Dc(dc.name.clone());
            let port = dc_port(i);
            add(&router, "link set lo up".to_owned());
            add(&router, "link add lan type bridge".to_owned());
            add(&router, format!("address add {}/16 dev lan", router_address(i)));
            add(&router, "link set lan up".to_owned());
            let other = namespace(&router);
            add(&backbone, format!("link add {port} type veth peer name wan netns {other}"));
            add(&backbone, format!("link set {port} master core up"));
            add(&router, format!("address add {}/24 dev wan", backbone_address(i)));
            add(&router, "link set wan up".to_owned());
            for there in (0..self.dcs.len()).filter(|there| *there != i) {
                add(
                    &router,
                    format!("route add {} via {}", network(there), backbone_address(there)),
                );
            }
            for (j, host) in dc.hosts.iter().enumerate() {
                let at = Place::Host(HostId { dc: dc.name.clone(), host: host.clone() });
                let (port, other) = (host_port(j), namespace(&at));
                add(&router, format!("link add {port} type veth peer name eth0 netns {other}"));
                add(&router, format!("link set {port} master lan up"));
                add(&at, "link set lo up".to_owned());
                add(&at, format!("address add {}/16 dev eth0", host_address(i, j)));
                add(&at, "link set eth0 up".to_owned());
                add(&at, format!("route add default via {}", router_address(i)));
            }
        }
        commands
    }
}

/// A namespace of a world.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Where the data centres meet.
    Backbone,
    /// The switch and router of a data centre.
    Dc(DcName),
    /// A host.
    Host(HostId),
}

/// The end of a cable that is not the host's or data centre's own: who is cut off does not notice
/// more than that nothing comes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cable {
    /// The namespace of that end.
    pub at: Place,
    /// Its interface.
    pub interface: String,
}

/// `a` to `z`, then `a1` to `z1`, and so on.
fn host_name(i: usize) -> HostName {
    let letter = char::from(b'a' + (i % 26) as u8);
    let name = if i < 26 { letter.to_string() } else { format!("{letter}{}", i / 26) };
    name.parse().expect("a letter and digits are a name")
}

fn dc_port(dc: usize) -> String {
    format!("dc{}", dc + 1)
}

fn host_port(host: usize) -> String {
    format!("host{}", host + 1)
}

fn host_address(dc: usize, host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, dc as u8 + 1, 0, host as u8 + 1)
}

fn router_address(dc: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, dc as u8 + 1, 0, 254)
}

fn backbone_address(dc: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, dc as u8 + 1)
}

fn network(dc: usize) -> String {
    format!("10.{}.0.0/16", dc + 1)
}

/// What goes through a cable in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// To the host or data centre.
    In,
    /// From it.
    Out,
}

impl Way {
    /// What `tc` calls that way, seen from the other end of the cable.
    pub(crate) fn hook(self) -> &'static str {
        match self {
            Way::In => "egress",
            Way::Out => "ingress",
        }
    }
}

/// A program of the classic packet filter, as `tc` reads it, that drops this share of packets by
/// chance. Above 100 is all.
///
/// The filter is in every kernel that has `tc` at all; `netem`, which does the same, is often not.
pub(crate) fn lossy(percent: u8) -> String {
    // Verdicts of `tc`: 0 passes a packet, 2 drops it.
    if percent >= 100 {
        return "1,6 0 0 2".to_owned();
    }
    // A random number below this is a lost packet.
    let below = u64::from(u32::MAX) * u64::from(percent) / 100;
    // A load of 32 bits from this offset is a random number.
    let random = 0xffff_f000_u32 + 56;
    format!("4,32 0 0 {random},53 0 1 {below},6 0 0 0,6 0 0 2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(dcs: usize, hosts: usize, gateways: usize) -> Result<Plan, PlanError> {
        Plan::even(dcs, hosts, gateways, Duration::ZERO)
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let cases = [
            ((1, 1, 1), None),
            ((16, 200, 200), None),
            ((0, 1, 1), Some(PlanError::Dcs(0))),
            ((17, 1, 1), Some(PlanError::Dcs(17))),
            ((1, 0, 1), Some(PlanError::Hosts(0))),
            ((1, 201, 1), Some(PlanError::Hosts(201))),
            ((1, 3, 0), Some(PlanError::Gateways { hosts: 3, gateways: 0 })),
            ((1, 3, 4), Some(PlanError::Gateways { hosts: 3, gateways: 4 })),
        ];
        for ((dcs, hosts, gateways), want) in cases {
            assert_eq!(even(dcs, hosts, gateways).err(), want, "{dcs} x {hosts}, {gateways}");
        }
        let mut twice = even(1, 2, 1).expect("a plan");
        twice.dcs[0].hosts[1] = twice.dcs[0].hosts[0].clone();
        assert_eq!(twice.check(), Err(PlanError::Twice("tokyo/a".to_owned())));
    }

    #[test]
    fn hosts_have_names_and_addresses_of_their_own() {
        let plan = even(DCS_MAX, HOSTS_MAX, 2).expect("a plan");
        let hosts: Vec<(HostId, bool)> = plan.hosts().collect();
        assert_eq!(hosts.len(), DCS_MAX * HOSTS_MAX);
        let names: Vec<String> = hosts.iter().take(3).map(|(id, _)| id.to_string()).collect();
        assert_eq!(names, ["tokyo/a", "tokyo/b", "tokyo/c"]);
        assert_eq!(hosts.iter().filter(|(_, gateway)| *gateway).count(), 2 * DCS_MAX);
        let addresses: BTreeSet<Ipv4Addr> =
            hosts.iter().map(|(id, _)| plan.address(id).expect("it has one")).collect();
        assert_eq!(addresses.len(), hosts.len());
        let routers: BTreeSet<Ipv4Addr> = (0..DCS_MAX).map(router_address).collect();
        assert!(addresses.is_disjoint(&routers));
        let strange = "tokyo/zz".parse().expect("a host");
        assert_eq!((plan.address(&strange), plan.cable(&strange)), (None, None));
    }

    #[test]
    fn every_cable_is_made_before_it_is_used() {
        let plan = even(3, 3, 1).expect("a plan");
        let name = |place: &Place| format!("{place:?}").replace(' ', "");
        let commands = plan.commands(&name);
        let position = |want: &(Place, String)| commands.iter().position(|found| found == want);
        for (id, _) in plan.hosts() {
            let Cable { at, interface } = plan.cable(&id).expect("it has one");
            let peer = name(&Place::Host(id.clone()));
            let made =
                (at.clone(), format!("link add {interface} type veth peer name eth0 netns {peer}"));
            let made = position(&made).expect("the cable is made");
            let plugged = (at, format!("link set {interface} master lan up"));
            assert!(made < position(&plugged).expect("it is plugged in"));
            let used = (Place::Host(id), "link set eth0 up".to_owned());
            assert!(made < position(&used).expect("the host's end is up"));
        }
        for dc in &plan.dcs {
            let Cable { at, interface } = plan.dc_cable(&dc.name).expect("it has one");
            let plugged = (at, format!("link set {interface} master core up"));
            assert!(position(&plugged).is_some());
        }
    }

    #[test]
    fn names_of_interfaces_are_short_enough() {
        // The kernel keeps 15 bytes.
        assert!(host_port(HOSTS_MAX).len() <= 15 && dc_port(DCS_MAX).len() <= 15);
    }

    #[test]
    fn shares_of_lost_packets() {
        assert_eq!(lossy(100), "1,6 0 0 2");
        assert_eq!(lossy(255), lossy(100));
        assert_eq!(lossy(50), "4,32 0 0 4294963256,53 0 1 2147483647,6 0 0 0,6 0 0 2");
        assert_eq!(lossy(0), "4,32 0 0 4294963256,53 0 1 0,6 0 0 0,6 0 0 2");
    }
}
