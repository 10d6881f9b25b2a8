//! What is measured: who, where, with how many bytes and callers. Plain values.

/// Bytes of a question, and of its answer.
pub(crate) const SIZES_BYTES: [usize; 3] = [64, 4 << 10, 1 << 20];

/// Callers at once.
pub(crate) const CALLERS: [usize; 2] = [1, 64];

/// Pause between two calls in a cell that wants both ends asleep: longer than anybody here looks before sleeping.
pub(crate) const PAUSE_US: u64 = 1_000;

/// Where the two ends run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layout {
    /// Both on one core.
    One,
    /// Each on a core of its own.
    Two,
    /// On two cores, and in two network namespaces.
    Apart,
}

impl Layout {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Layout::One => "One core",
            Layout::Two => "Two cores",
            Layout::Apart => "Two hosts (network namespaces), two cores",
        }
    }
}

/// Who carries calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    /// How it is called on a command line.
    pub(crate) id: &'static str,
    /// How tables call it.
    pub(crate) name: &'static str,
    pub(crate) is_ours: bool,
    /// Whether its ends look without sleeping, so that they must be stopped while others are measured.
    pub(crate) is_restless: bool,
    pub(crate) layouts: &'static [Layout],
    /// Whether it is part of a build without the feature `peers`.
    pub(crate) is_built_in: bool,
}

const HERE: &[Layout] = &[Layout::One, Layout::Two];
const EVERYWHERE: &[Layout] = &[Layout::One, Layout::Two, Layout::Apart];

const fn ours(id: &'static str, name: &'static str, layouts: &'static [Layout]) -> Contender {
    Contender { id, name, is_ours: true, is_restless: false, layouts, is_built_in: true }
}

const fn bare(id: &'static str, name: &'static str, layouts: &'static [Layout]) -> Contender {
    Contender { id, name, is_ours: false, is_restless: false, layouts, is_built_in: true }
}

const fn peer(id: &'static str, name: &'static str) -> Contender {
    let layouts = HERE;
    Contender { id, name, is_ours: false, is_restless: false, layouts, is_built_in: false }
}

/// All of them, in the order of the tables.
pub(crate) const CONTENDERS: [Contender; 22] = [
    ours("ring", "middlecon, ring, threads", HERE),
    ours("ring-tasks", "middlecon, ring, tasks", HERE),
    ours("packets", "middlecon, packets, threads", HERE),
    ours("packets-tasks", "middlecon, packets, tasks", HERE),
    ours("http", "middlecon, over HTTP through the node", &[Layout::Two]),
    ours("across", "middlecon, TLS, threads", &[Layout::Apart]),
    ours("across-tasks", "middlecon, TLS, tasks", &[Layout::Apart]),
    ours("relayed", "middlecon, TLS through a gateway, threads", &[Layout::Apart]),
    Contender {
        is_restless: true,
        ..bare("memory", "shared memory, looking only", &[Layout::Two])
    },
    bare("futex", "shared memory and futex", HERE),
    bare("unix", "Unix stream socket", HERE),
    bare("tcp", "TCP", EVERYWHERE),
    bare("tls", "TCP and rustls", EVERYWHERE),
    peer("grpc-unix", "tonic (gRPC), Unix socket"),
    peer("grpc-tcp", "tonic (gRPC), TCP"),
    peer("zenoh", "Zenoh query, Unix socket"),
    peer("nats", "NATS request"),
    peer("zeromq", "ZeroMQ REQ, Unix socket"),
    Contender { is_restless: true, ..peer("iceoryx2", "iceoryx2 request-response, polled") },
    peer("iceoryx2-events", "iceoryx2 request-response, events"),
    // Twice the same, at the beginning and at the end of each round: what the machine adds by itself.
    ours("ring-again", "middlecon, ring, threads, once more", HERE),
    bare("unix-again", "Unix stream socket, once more", HERE),
];

/// The contender with this id.
pub(crate) fn find(id: &str) -> Option<&'static Contender> {
    CONTENDERS.iter().find(|contender| contender.id == id)
}

/// One thing to measure of a contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cell {
    pub(crate) size_bytes: usize,
    pub(crate) callers: usize,
    pub(crate) pause_us: u64,
}

/// What is measured in a layout.
pub(crate) fn cells(sizes_bytes: &[usize]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &callers in &CALLERS {
        for &size_bytes in sizes_bytes {
            cells.push(Cell { size_bytes, callers, pause_us: 0 });
        }
    }
    cells.push(Cell { size_bytes: SIZES_BYTES[0], callers: 1, pause_us: PAUSE_US });
    cells
}

impl Contender {
    /// Whether a cell says anything of it. Who only looks has nobody to wake, and needs a core for each.
    pub(crate) fn takes(&self, layout: Layout, cell: Cell) -> bool {
        match self.id {
            "memory" => cell.callers == 1 && cell.pause_us == 0,
            "ring-again" | "unix-again" => cell.callers == 1 && cell.size_bytes == SIZES_BYTES[0],
            // Those who poll on one core wait for each other's time slice.
            "iceoryx2" => layout == Layout::Two && cell.pause_us == 0,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_is_measured_somewhere_and_has_a_name_of_its_own() {
        for (at, contender) in CONTENDERS.iter().enumerate() {
            assert_eq!(find(contender.id), Some(contender), "{}", contender.id);
            assert!(CONTENDERS[..at].iter().all(|other| other.name != contender.name));
            let cells = cells(&SIZES_BYTES);
            let somewhere = contender
                .layouts
                .iter()
                .any(|layout| cells.iter().any(|cell| contender.takes(*layout, *cell)));
            assert!(somewhere, "{}", contender.id);
        }
    }
}
