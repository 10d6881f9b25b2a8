//! Simulated worlds: hosts in data centres, with every fault, from a seed.
//!
//! The rules under test are the fabric's own: [`kumo_fabric::members`], the last-writer-wins map, its
//! clock, rendezvous hashing. What is modelled is the network between them (`network`), what entries
//! are carried by (`desired`), and what is promised (`promises`). Time is a number: a world of half a
//! minute takes milliseconds, and a seed always gives the same one.

mod desired;
mod dice;
mod network;
mod promises;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use kumo_fabric::clock::Clock;
use kumo_fabric::members::{Members, Seen};

use self::desired::{COMPARE_MS, Copy, Written};
pub use self::dice::Dice;
use self::network::{How, Link, Payload, Token};
use self::promises::Disturbance;

/// A host, by its number. Gateways come first.
type Nth = usize;

/// What the clocks of the world show when it begins.
const EPOCH_MS: u64 = 1_800_000_000_000;

/// Faults begin when everybody has found everybody, and writers have written.
const FAULTS_FROM_MS: u64 = 4_000;

/// And go on until then.
const FAULTS_UNTIL_MS: u64 = 20_000;

/// Everything heals then.
const HEALED_MS: u64 = 24_000;

/// So long after that, views must agree.
const AGREED_MS: u64 = 2_000;

/// So long after that, hosts that died behind a cut are known to be dead.
const LATE_MS: u64 = 4_000;

/// So long after that, copies must be equal, whatever messages were lost.
const CONVERGED_MS: u64 = 20 * COMPARE_MS;

/// So many of the last events are told of when a promise is broken.
const NOTES_MAX: usize = 60;

/// How large a world is, and how bad.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Data centres.
    pub dcs: usize,
    /// Gateways of each.
    pub gateways: usize,
    /// Members of each.
    pub members: usize,
    /// How many members keep a list of all hosts, besides all gateways.
    pub observers: usize,
    /// How many faults there are.
    pub faults: usize,
    /// How many writes.
    pub writes: usize,
}

impl Plan {
    /// A world of a few dozen hosts.
    pub fn small(dice: &mut Dice) -> Plan {
        let dcs = dice.within(1..=3) as usize;
        Plan {
            dcs,
            gateways: dice.within(1..=3) as usize,
            members: dice.within(1..=5) as usize,
            observers: 6,
            // Some worlds have one fault at a time, so that promises can be checked to the letter.
            faults: if dice.chance(50) { 2 } else { dice.within(3..=9) as usize },
            writes: 25,
        }
    }
}

/// What a world went through.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Hosts in it.
    pub hosts: usize,
    /// Things that happened.
    pub events: u64,
    /// Changes that observers saw.
    pub changes: u64,
    /// Writes that were acknowledged, by keys that were written.
    pub keys: usize,
    /// Entries that were refused because clocks were too far apart.
    pub refused: u64,
}

/// A promise was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    seed: u64,
    at_ms: u64,
    what: String,
    notes: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        write!(f, "seed {} at {} ms: {}", self.seed, self.at_ms, self.what)
    }
}

/// Whether a host's process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Frozen,
    Dead,
}

#[derive(Debug)]
struct Host {
    id: HostId,
    dc: usize,
    role: Role,
    life: Life,
    unplugged: bool,
    incarnation: u64,
    /// When it last was killed, frozen, unplugged, or well again.
    changed_ms: u64,
    /// How far its wall clock is from true time.
    skew_ms: i64,
    /// It is linked to a gateway of another data centre.
    away: bool,
    links: Vec<usize>,
    /// Which tokens it knows of, and through which gateways (a bit for each).
    tokens: BTreeMap<Token, u64>,
    view: Option<View>,
    /// What happened to it while it was frozen.
    inbox: Vec<Event>,
    copy: Copy,
}

impl Host {
    /// Whether its clock is so far off that others refuse what it writes, or it what they write.
    fn is_far_off(&self) -> bool {
        self.skew_ms.unsigned_abs() > SKEW_MS_MAX
    }
}

/// Clocks are this far off at most, but for one in a few worlds that is an hour off. Two hosts may then
/// be apart by twice as much, which is still less than what is refused.
const SKEW_MS_MAX: u64 = 120_000;

/// What an observer believes.
#[derive(Debug, Default)]
struct View {
    members: Members,
    /// When it will decide next.
    decides_ms: Option<u64>,
}

#[derive(Clone, Debug)]
enum Event {
    Arrives { link: usize, to: usize, payload: Payload },
    Gone { link: usize, end: usize, how: How },
    Dials { host: Nth, to: Option<Nth> },
    Decides(Nth),
    Begins(Nth),
    Fault,
    Mends(Mend),
    Writes(Nth),
    Ticks(Nth),
    Overdue(Nth),
    Heals,
    Agree { is_late: bool },
    Compare,
    Converge,
}

/// What is mended.
#[derive(Clone, Copy, Debug)]
enum Mend {
    Thaw(Nth),
    Plug(Nth),
    Start(Nth),
    Join(usize),
}

struct World {
    now_ms: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_made: u64,
    dice: Dice,
    hosts: Vec<Host>,
    gateways: usize,
    observers: Vec<Nth>,
    by_id: BTreeMap<HostId, Nth>,
    links: Vec<Link>,
    /// Links that somebody still holds.
    live: Vec<usize>,
    /// Which data centres are cut off, and since when.
    cut: Vec<bool>,
    cut_ms: Vec<u64>,
    delays_ms: Vec<Vec<u64>>,
    loss_percent: u64,
    disturbances: Vec<Disturbance>,
    /// A data centre may have had no gateway of its own: its members are linked to others'.
    away: bool,
    is_late: bool,
    written: Written,
    touched: BTreeSet<Nth>,
    notes: VecDeque<String>,
    trace: bool,
    failed: Option<String>,
    changes: u64,
}

/// Lets a world run its course.
///
/// # Errors
/// The first promise that is broken, with what happened before.
pub fn run(seed: u64, plan: &Plan, trace: bool) -> Result<Report, Failure> {
    let mut world = World::new(seed, plan, trace);
    let mut handled = 0;
    while let Some(((at_ms, _), event)) = world.events.pop_first() {
        world.now_ms = at_ms;
        handled += 1;
        if matches!(event, Event::Converge) {
            world.check_copies();
            world.events.clear();
        } else {
            world.handle(event);
            // As the fabric does: what was seen in one moment is taken in first.
            if world.events.first_key_value().is_none_or(|((next_ms, _), _)| *next_ms > at_ms) {
                world.plan_decisions();
            }
        }
        if let Some(what) = world.failed.take() {
            let notes = world.notes.into();
            return Err(Failure { seed, at_ms, what, notes });
        }
    }
    Ok(Report {
        hosts: world.hosts.len(),
        events: handled,
        changes: world.changes,
        keys: world.written.acknowledged.len(),
        refused: world.hosts.iter().map(|host| host.copy.refused).sum(),
    })
}

impl World {
    fn new(seed: u64, plan: &Plan, trace: bool) -> World {
        let mut dice = Dice::new(seed);
        let gateways = plan.dcs * plan.gateways;
        assert!(gateways <= 64, "a token's gateways are the bits of one number");
        let place = |nth: Nth| match nth.checked_sub(gateways) {
            None => (Role::Gateway, nth / plan.gateways, format!("gw-{}", nth % plan.gateways)),
            Some(nth) => (Role::Member, nth / plan.members, format!("m-{}", nth % plan.members)),
        };
        let mut hosts: Vec<Host> = (0..gateways + plan.dcs * plan.members)
            .map(|nth| {
                let (role, dc, name) = place(nth);
                let id: HostId = format!("dc-{dc}/{name}").parse().expect("names of ours");
                let skew_ms = dice.within(0..=2 * SKEW_MS_MAX) as i64 - SKEW_MS_MAX as i64;
                Host {
                    copy: Copy::begin(Clock::new(id.clone(), None)),
                    id,
                    dc,
                    role,
                    life: Life::Dead,
                    unplugged: false,
                    incarnation: 0,
                    changed_ms: 0,
                    skew_ms,
                    away: false,
                    links: Vec::new(),
                    tokens: BTreeMap::new(),
                    view: None,
                    inbox: Vec::new(),
                }
            })
            .collect();
        if hosts.len() > gateways && dice.chance(12) {
            let far = dice.within(gateways as u64..=hosts.len() as u64 - 1) as usize;
            hosts[far].skew_ms = if dice.chance(50) { 3_600_000 } else { -3_600_000 };
        }
        let members = hosts.len() - gateways;
        let step = (members / plan.observers.max(1)).max(1);
        let watching = (gateways..hosts.len()).step_by(step).take(plan.observers);
        let observers: Vec<Nth> = (0..gateways).chain(watching).collect();
        for observer in &observers {
            hosts[*observer].view = Some(View::default());
        }
        // Between two data centres it is the same both ways, whichever is named first.
        let far_ms: Vec<u64> = (0..plan.dcs).map(|_| dice.within(1..=40)).collect();
        let delay_ms = |a: usize, b: usize| if a == b { 1 } else { far_ms[a] + far_ms[b] };
        let delays_ms: Vec<Vec<u64>> =
            (0..plan.dcs).map(|a| (0..plan.dcs).map(|b| delay_ms(a, b)).collect()).collect();
        let by_id = hosts.iter().enumerate().map(|(nth, host)| (host.id.clone(), nth)).collect();
        let mut world = World {
            now_ms: 0,
            events: BTreeMap::new(),
            events_made: 0,
            hosts,
            gateways,
            observers,
            by_id,
            links: Vec::new(),
            live: Vec::new(),
            cut: vec![false; plan.dcs],
            cut_ms: vec![0; plan.dcs],
            delays_ms,
            loss_percent: if dice.chance(50) { 10 } else { 0 },
            dice,
            disturbances: Vec::new(),
            away: false,
            is_late: false,
            written: Written::default(),
            touched: BTreeSet::new(),
            notes: VecDeque::new(),
            trace,
            failed: None,
            changes: 0,
        };
        world.schedule(plan);
        world
    }

    fn schedule(&mut self, plan: &Plan) {
        for host in 0..self.hosts.len() {
            // Gateways first, so that members find one of their own data centre.
            let first_ms = if host < self.gateways { 0 } else { 100 };
            let at_ms = first_ms + self.dice.within(0..=90);
            self.at(at_ms, Event::Begins(host));
            let at_ms = self.dice.within(1..=COMPARE_MS);
            self.at(at_ms, Event::Ticks(host));
        }
        for _ in 0..plan.faults {
            let at_ms = self.dice.within(FAULTS_FROM_MS..=FAULTS_UNTIL_MS);
            self.at(at_ms, Event::Fault);
        }
        for _ in 0..plan.writes {
            let at_ms = self.dice.within(500..=FAULTS_UNTIL_MS);
            let host = self.dice.within(0..=self.hosts.len() as u64 - 1) as usize;
            self.at(at_ms, Event::Writes(host));
        }
        let agrees = |is_late| Event::Agree { is_late };
        self.at(FAULTS_FROM_MS - 1, agrees(false));
        self.at(HEALED_MS, Event::Heals);
        self.at(HEALED_MS + AGREED_MS, agrees(false));
        self.at(HEALED_MS + LATE_MS, agrees(true));
        for at_ms in (1_000..HEALED_MS + LATE_MS).step_by(500) {
            self.at(at_ms, Event::Compare);
        }
        self.at(HEALED_MS + CONVERGED_MS, Event::Converge);
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.events_made += 1;
        self.events.insert((at_ms.max(self.now_ms), self.events_made), event);
    }

    fn name(&self, host: Nth) -> String {
        self.hosts[host].id.to_string()
    }

    /// Keeps a note for the case that something breaks.
    fn note(&mut self, what: impl Fn(&World) -> String) {
        if self.trace {
            println!("{:>6} {}", self.now_ms, what(self));
        }
        if self.hosts.len() < 100 {
            let note = format!("{:>6} {}", self.now_ms, what(self));
            self.notes.push_back(note);
            if self.notes.len() > NOTES_MAX {
                self.notes.pop_front();
            }
        }
    }

    fn fail(&mut self, what: &str) {
        self.failed.get_or_insert_with(|| what.to_owned());
    }

    fn handle(&mut self, event: Event) {
        let frozen = match &event {
            Event::Gone { link, end, .. } => Some(self.links[*link].ends[*end]),
            Event::Dials { host, .. } | Event::Decides(host) => Some(*host),
            _ => None,
        };
        if let Some(host) = frozen.filter(|host| self.hosts[*host].life == Life::Frozen) {
            return self.hosts[host].inbox.push(event);
        }
        match event {
            Event::Arrives { link, to, payload } => self.arrives(link, to, payload),
            Event::Gone { link, end, how } => self.gone(link, end, how),
            Event::Dials { host, to } => self.dials(host, to),
            Event::Decides(host) => self.decides(host),
            Event::Begins(host) => self.start(host),
            Event::Fault => self.fault(),
            Event::Mends(mend) => self.mend(mend),
            Event::Writes(host) => self.write(host),
            Event::Ticks(host) => {
                self.tick(host);
                self.at(self.now_ms + COMPARE_MS, Event::Ticks(host));
            }
            Event::Overdue(host) => self.look_for_overdue(host),
            Event::Heals => self.heal(),
            Event::Agree { is_late } => {
                self.is_late = is_late;
                self.check_views();
            }
            Event::Compare => self.check_rendezvous(),
            Event::Converge => {}
        }
    }

    /// An observer takes in what happened to a token, as the fabric's watcher does.
    fn see(&mut self, observer: Nth, whose: Nth, seen: Seen) {
        if observer == whose && !matches!(seen, Seen::Up { .. }) {
            return; // Others may lose sight of us; we do not.
        }
        let Some(view) = self.hosts[observer].view.as_mut() else { return };
        let changes = view.members.see(seen, self.now_ms);
        self.touched.insert(observer);
        self.changed(observer, &changes);
    }

    fn decides(&mut self, observer: Nth) {
        let Some(view) = self.hosts[observer].view.as_mut() else { return };
        if view.decides_ms.is_none_or(|at_ms| at_ms > self.now_ms) {
            return; // Something happened meanwhile, and it decides later.
        }
        view.decides_ms = None;
        let changes = view.members.decide(self.now_ms);
        self.touched.insert(observer);
        self.changed(observer, &changes);
    }

    fn changed(&mut self, observer: Nth, changes: &[kumo_fabric::members::Change]) {
        self.changes += changes.len() as u64;
        for change in changes {
            self.check_change(observer, change);
        }
    }

    fn plan_decisions(&mut self) {
        for observer in std::mem::take(&mut self.touched) {
            let Some(view) = self.hosts[observer].view.as_mut() else { continue };
            let next_ms = view.members.next_ms();
            if view.decides_ms != next_ms {
                view.decides_ms = next_ms;
                if let Some(at_ms) = next_ms {
                    view.decides_ms = Some(at_ms.max(self.now_ms));
                    self.at(at_ms, Event::Decides(observer));
                }
            }
        }
    }

    fn fault(&mut self) {
        let running = |range: std::ops::Range<Nth>| -> Vec<Nth> {
            let well = |host: &Nth| {
                self.hosts[*host].life == Life::Running && !self.hosts[*host].unplugged
            };
            range.filter(well).collect()
        };
        let members = running(self.gateways..self.hosts.len());
        let gateways = running(0..self.gateways);
        let (Some(member), Some(gateway)) = (self.dice.pick(&members), self.dice.pick(&gateways))
        else {
            return;
        };
        let mended_ms = self.now_ms + self.dice.within(200..=8_000);
        match self.dice.within(0..=8) {
            0 | 1 => self.kill_for_a_while(member, mended_ms),
            2 => self.freeze(member, mended_ms),
            3 => self.kill_for_a_while(gateway, mended_ms),
            4 => self.freeze(gateway, mended_ms),
            5 => {
                self.note(|world| format!("{} is unplugged", world.name(member)));
                self.hosts[member].unplugged = true;
                self.befell(member);
                self.at(mended_ms, Event::Mends(Mend::Plug(member)));
            }
            6 => {
                // A gateway and a member behind it at one moment.
                let held = self.links_of(member);
                let gateway = held.first().map_or(gateway, |nth| self.links[*nth].ends[1]);
                if self.hosts[gateway].life == Life::Running {
                    self.kill_for_a_while(gateway, mended_ms);
                }
                self.kill_for_a_while(member, mended_ms + 3_000);
            }
            7 => self.leave(member, mended_ms),
            _ => {
                let dc = self.hosts[gateway].dc;
                if self.cut.len() > 1 && !self.cut[dc] {
                    self.note(|_| format!("dc-{dc} is cut off"));
                    self.disturb(dc, false, true);
                    (self.cut[dc], self.cut_ms[dc]) = (true, self.now_ms);
                    self.look_at_links();
                    for host in 0..self.hosts.len() {
                        self.look_for_overdue(host);
                    }
                    self.at(mended_ms, Event::Mends(Mend::Join(dc)));
                }
            }
        }
    }

    /// Something has befallen `host`, or it is well again.
    fn befell(&mut self, host: Nth) {
        self.hosts[host].changed_ms = self.now_ms;
        if self.hosts[host].role == Role::Gateway {
            let life = self.hosts[host].life;
            self.disturb(self.hosts[host].dc, life == Life::Dead, life != Life::Running);
        }
        self.look_at_links();
        self.look_for_overdue(host);
    }

    fn kill_for_a_while(&mut self, host: Nth, until_ms: u64) {
        self.kill(host);
        if self.dice.chance(60) {
            self.at(until_ms, Event::Mends(Mend::Start(host)));
        }
    }

    fn kill(&mut self, host: Nth) {
        self.note(|world| format!("{} is killed", world.name(host)));
        self.stop(host, false);
    }

    fn leave(&mut self, host: Nth, until_ms: u64) {
        self.note(|world| format!("{} leaves", world.name(host)));
        let token = (host, self.hosts[host].incarnation);
        for nth in self.links_of(host) {
            self.send(nth, host, Payload::Bye(token));
        }
        self.stop(host, true);
        self.at(until_ms, Event::Mends(Mend::Start(host)));
    }

    fn stop(&mut self, host: Nth, said_so: bool) {
        self.ends(host, said_so);
        self.hosts[host].life = Life::Dead;
        self.hosts[host].inbox.clear();
        if let Some(view) = self.hosts[host].view.as_mut() {
            *view = View::default();
        }
        let dc = self.hosts[host].dc;
        let gateway_left = (0..self.gateways)
            .any(|nth| self.hosts[nth].dc == dc && self.hosts[nth].life == Life::Running);
        self.away |= !gateway_left;
        self.befell(host);
    }

    fn freeze(&mut self, host: Nth, until_ms: u64) {
        self.note(|world| format!("{} is frozen", world.name(host)));
        self.hosts[host].life = Life::Frozen;
        self.befell(host);
        self.at(until_ms, Event::Mends(Mend::Thaw(host)));
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Thaw(host) if self.hosts[host].life == Life::Frozen => {
                self.note(|world| format!("{} is thawed", world.name(host)));
                self.hosts[host].life = Life::Running;
                self.befell(host);
                for event in std::mem::take(&mut self.hosts[host].inbox) {
                    self.at(self.now_ms, event);
                }
            }
            Mend::Plug(host) if self.hosts[host].unplugged => {
                self.note(|world| format!("{} is plugged in", world.name(host)));
                self.hosts[host].unplugged = false;
                self.befell(host);
            }
            Mend::Start(host) if self.hosts[host].life == Life::Dead => {
                self.start(host);
            }
            Mend::Join(dc) if self.cut[dc] => {
                self.note(|_| format!("dc-{dc} is reached again"));
                self.cut[dc] = false;
                self.disturb(dc, false, false);
                self.look_at_links();
            }
            _ => {}
        }
    }

    fn start(&mut self, host: Nth) {
        self.note(|world| format!("{} starts", world.name(host)));
        self.hosts[host].life = Life::Running;
        self.hosts[host].incarnation += 1;
        self.read_disk(host);
        self.befell(host);
        self.joins(host);
    }

    fn heal(&mut self) {
        for dc in 0..self.cut.len() {
            self.mend(Mend::Join(dc));
        }
        for host in 0..self.hosts.len() {
            self.mend(Mend::Thaw(host));
            self.mend(Mend::Plug(host));
        }
        // A data centre without a gateway would have to be reached through others.
        for dc in 0..self.cut.len() {
            let mut gateways = (0..self.gateways).filter(|nth| self.hosts[*nth].dc == dc);
            let first = gateways.clone().next();
            if gateways.all(|nth| self.hosts[nth].life == Life::Dead)
                && let Some(first) = first
            {
                self.mend(Mend::Start(first));
            }
        }
        // What was still to begin is of no use any more.
        self.events
            .retain(|_, event| !matches!(event, Event::Fault | Event::Mends(_) | Event::Writes(_)));
    }
}
