//! iceoryx2: request and response in shared memory, polled as its examples do, or with events that wake.
//!
//! Polled, both ends look a while and then let others run. With events, a question wakes the callee by the
//! service's event, and an answer wakes its caller by one of the caller's own.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use iceoryx2::config::Config;
use iceoryx2::port::client::Client;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::request_response::PortFactory;

use super::super::{Ask, Callers, Place};
use crate::clock::Question;
use crate::plan::CALLERS;

type Service = ipc::Service;

/// Looks before a poller lets others run.
const LOOKS: u32 = 200;

/// Callers, and one that has just gone.
const CLIENTS_MAX: usize = CALLERS[1] + 1;

/// A node for each thread: those of this kind stay where they were made.
const NODES_MAX: usize = CLIENTS_MAX + 1;

fn words(error: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("iceoryx2: {error:?}"))
}

/// What it leaves in `/dev/shm` has this prefix. No prefix may begin with another: it takes the files of
/// one for its own then.
fn prefix(place: &Place) -> String {
    let way = if wakes(place) { "events" } else { "polled" };
    let world = place.dir().parent().and_then(std::path::Path::file_name).unwrap_or_default();
    format!("{}-{}-{way}-", world.to_string_lossy(), place.cpus.len())
}

fn wakes(place: &Place) -> bool {
    place.id == "iceoryx2-events"
}

fn node(place: &Place) -> io::Result<iceoryx2::node::Node<Service>> {
    let mut config = Config::default();
    config.global.prefix = FileName::new(prefix(place).as_bytes()).map_err(words)?;
    let root = place.dir().join(&place.id);
    let root = Path::new(root.as_os_str().as_encoded_bytes()).map_err(words)?;
    config.global.set_root_path(&root);
    NodeBuilder::new().config(&config).create::<Service>().map_err(words)
}

type Factory = PortFactory<Service, [u8], u64, [u8], ()>;

fn service(node: &iceoryx2::node::Node<Service>) -> io::Result<Factory> {
    let name = "echo".try_into().map_err(words)?;
    node.service_builder(&name)
        .request_response::<[u8], [u8]>()
        .request_user_header::<u64>()
        .max_clients(CLIENTS_MAX)
        .max_servers(1)
        .max_nodes(NODES_MAX)
        .max_active_requests_per_client(1)
        .max_loaned_requests(1)
        .max_response_buffer_size(1)
        .max_borrowed_responses_per_pending_response(1)
        .open_or_create()
        .map_err(words)
}

fn event(
    node: &iceoryx2::node::Node<Service>,
    name: &str,
) -> io::Result<iceoryx2::service::port_factory::event::PortFactory<Service>> {
    let name = name.try_into().map_err(words)?;
    let event = node.service_builder(&name).event();
    event.max_notifiers(CLIENTS_MAX).max_nodes(NODES_MAX).open_or_create().map_err(words)
}

/// A look in vain.
fn rest(looks: &mut u32) {
    *looks += 1;
    if looks.is_multiple_of(LOOKS) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

pub(super) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let node = node(place)?;
    let service = service(&node)?;
    let server = service
        .server_builder()
        .initial_max_slice_len(64)
        .allocation_strategy(AllocationStrategy::PowerOfTwo)
        .max_loaned_responses_per_request(1)
        .create()
        .map_err(words)?;
    let wakes = wakes(place);
    let listener = event(&node, "questions")?.listener_builder().create().map_err(words)?;
    let mut sleepers: HashMap<u64, Notifier<Service>> = HashMap::new();
    let (mut looks, dir) = (0, place.dir().to_owned());
    let prefix = prefix(place);
    crate::role::at_end(move || clean(&dir, &prefix));
    ready("");
    loop {
        let Some(question) = server.receive().map_err(words)? else {
            if wakes {
                listener.blocking_wait_all(|_| {}).map_err(words)?;
            } else {
                rest(&mut looks);
            }
            continue;
        };
        let bytes = question.payload();
        let answer = question.loan_slice_uninit(bytes.len()).map_err(words)?;
        answer.write_from_slice(bytes).send().map_err(words)?;
        if wakes {
            let caller = *question.user_header();
            let sleeper = match sleepers.entry(caller) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(unknown) => {
                    let event = event(&node, &format!("answers-{caller}"))?;
                    unknown.insert(event.notifier_builder().create().map_err(words)?)
                }
            };
            sleeper.notify().map_err(words)?;
        }
    }
}

/// Processes that end at once leave their shared memory behind; this is ours alone, by its prefix.
fn clean(dir: &std::path::Path, prefix: &str) {
    for dir in [std::path::Path::new("/dev/shm"), dir] {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// The events of one caller.
struct Wakes {
    questions: Notifier<Service>,
    answers: Listener<Service>,
}

struct Poller {
    client: Client<Service, [u8], u64, [u8], ()>,
    number: u64,
    wakes: Option<Wakes>,
    // Ports end before what they are of.
    _service: Factory,
    _node: iceoryx2::node::Node<Service>,
}

impl Poller {
    fn new(place: &Place) -> io::Result<Poller> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let node = node(place)?;
        let service = service(&node)?;
        let client = service
            .client_builder()
            .initial_max_slice_len(64)
            .allocation_strategy(AllocationStrategy::PowerOfTwo)
            .create()
            .map_err(words)?;
        let wakes = if wakes(place) {
            let questions = event(&node, "questions")?;
            let answers = event(&node, &format!("answers-{number}"))?;
            Some(Wakes {
                questions: questions.notifier_builder().create().map_err(words)?,
                answers: answers.listener_builder().create().map_err(words)?,
            })
        } else {
            None
        };
        Ok(Poller { client, number, wakes, _service: service, _node: node })
    }
}

impl Ask for Poller {
    fn is_kept(&self) -> bool {
        // A callee that polls looks at all that are connected, so those at rest would cost the others.
        self.wakes.is_some()
    }

    fn ask(&mut self, question: &Question) -> io::Result<bool> {
        let body = question.body();
        let mut request = self.client.loan_slice_uninit(body.len()).map_err(words)?;
        *request.user_header_mut() = self.number;
        let pending = request.write_from_slice(body).send().map_err(words)?;
        if let Some(wakes) = &self.wakes {
            wakes.questions.notify().map_err(words)?;
        }
        let mut looks = 0;
        loop {
            if let Some(answer) = pending.receive().map_err(words)? {
                return Ok(*answer.payload() == *body);
            }
            match &self.wakes {
                Some(wakes) => wakes.answers.blocking_wait_all(|_| {}).map_err(words)?,
                None => rest(&mut looks),
            }
        }
    }
}

pub(super) fn callers(place: &Place) -> io::Result<Callers> {
    let place = place.clone();
    Ok(Callers::Threads(std::sync::Arc::new(move || Ok(Box::new(Poller::new(&place)?)))))
}
