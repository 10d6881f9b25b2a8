//! NATS: requests over a `nats-server` of our own, which may run on the cores of both ends.

use std::io;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::super::{Answer, AskTask, Callers, Place, runtime};

/// Longest wait for the server.
const START_WAIT_MAX: Duration = Duration::from_secs(10);

const SUBJECT: &str = "echo";

/// The server; killed and reaped when it is dropped.
struct Broker(Child);

impl Broker {
    fn start(place: &Place) -> io::Result<(Broker, String)> {
        kumo_sys::cpu::keep_to(&place.cpus)?;
        let port = TcpListener::bind((place.ip, 0))?.local_addr()?.port();
        let address = place.ip.to_string();
        let mut command = Command::new("nats-server");
        command.args(["--addr", &address, "--port", &port.to_string()]);
        // Users often have no sbin on their path, and Debian puts it there.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = child.spawn().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "cannot run nats-server ({error}); it comes with Debian's package of that name"
                ),
            )
        })?;
        let broker = Broker(child);
        kumo_sys::cpu::keep_to(&[place.cpu])?;
        let url = format!("nats://{address}:{port}");
        let until = Instant::now() + START_WAIT_MAX;
        while std::net::TcpStream::connect((place.ip, port)).is_err() {
            if Instant::now() > until {
                return Err(io::Error::other("nats-server does not listen"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok((broker, url))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already; then there is only the reaping left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let (mut broker, url) = Broker::start(place)?;
    // This process ends by `exit` when its owner wants it to: nothing is dropped then.
    let pid = broker.0.id();
    crate::role::at_end(move || {
        if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let served = runtime()?.block_on(async {
        let client = async_nats::connect(&url).await.map_err(io::Error::other)?;
        let mut questions = client.subscribe(SUBJECT).await.map_err(io::Error::other)?;
        client.flush().await.map_err(io::Error::other)?;
        ready(&url);
        while let Some(question) = questions.next().await {
            if let Some(reply) = question.reply {
                client.publish(reply, question.payload).await.map_err(io::Error::other)?;
            }
        }
        Ok(())
    });
    let _ = broker.0.kill();
    served
}

struct Nats(async_nats::Client);

impl AskTask for Nats {
    fn ask(&self, question: Bytes) -> Answer<'_> {
        Box::pin(async move {
            let answer = self.0.request(SUBJECT, question).await.map_err(io::Error::other)?;
            Ok(answer.payload)
        })
    }
}

pub(super) fn callers(place: &Place) -> io::Result<Callers> {
    let runtime = runtime()?;
    let client = runtime.block_on(async_nats::connect(&place.said)).map_err(io::Error::other)?;
    Ok(Callers::Tasks(runtime, Rc::new(Nats(client))))
}
