//! What a view of the busiest costs on the wire, told once a second.

use std::fmt::Write as _;
use std::io::{self, Error, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use kumo_testbed::bench::machine;
use kumo_testbed::bench::stats::significant;

use crate::http::{self, Request};
use crate::server::Server;

/// The ten that use the CPU most, as `top` shows them.
const QUESTION: &str = "columns=pid,user,cpu,mem,rss,state,time,cmdline&sort=-cpu&limit=10";

/// Longest wait for the first message, which measures CPU use for a while.
const FIRST_WAIT_MAX: Duration = Duration::from_secs(10);

/// What begins a message.
const WHOLE: &str = "\"full\":true";
const DELTA: &str = "\"full\":false";

pub(crate) fn measure(programs: &Path, wall: Duration) -> io::Result<String> {
    let server = Server::k2i(&programs.join("k2i"), "auto")?;
    let asked = Request::get(format!("/v2/proc?{QUESTION}&max_age_ms=500"));
    let mut once = Vec::new();
    http::begin(server.address, &asked)?.read_to_end(&mut once)?;
    let cpu = || machine::cpu_time(server.pid()).unwrap_or_default();

    let told = Request::get(format!("/v2/proc/stream?{QUESTION}&interval_ms=1000"));
    let mut stream = http::begin(server.address, &told)?;
    // A read ends soon enough for the clock to be looked at.
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let first =
        read_for(&mut stream, FIRST_WAIT_MAX, &|text| text.contains(WHOLE) && text.contains("]}"))?;
    if !first.contains(WHOLE) || first.matches("\"pid\":").count() != 10 {
        return Err(Error::other(format!("the stream does not begin with ten rows: {first}")));
    }
    let (began, cpu_before) = (Instant::now(), cpu());
    let rest = read_for(&mut stream, wall, &|_| false)?;
    let (took, cpu) = (began.elapsed(), cpu().saturating_sub(cpu_before));
    let deltas = rest.matches(DELTA).count() as u64;
    // One more or less may fall into the time.
    if !(wall.as_secs().saturating_sub(1)..=wall.as_secs() + 1).contains(&deltas) {
        return Err(Error::other(format!("{deltas} messages came in {took:?}, not one a second")));
    }
    let a_second = rest.len() as f64 / took.as_secs_f64();
    let mut text = "| the top 10, once a second | bytes a second | CPU of the server, % of one |\n|---|---:|---:|\n".to_owned();
    let percent = significant(100.0 * cpu.as_secs_f64() / took.as_secs_f64());
    let _ = writeln!(text, "| told as what has changed | {a_second:.0} | {percent} |");
    let _ = writeln!(text, "| asked anew, answers alone | {} | |", once.len());
    let _ = writeln!(
        text,
        "\nThe first message takes {} bytes; {deltas} more came in {} s.",
        first.len(),
        significant(took.as_secs_f64()),
    );
    Ok(text)
}

/// What comes in this time, or until it is enough, framing included.
fn read_for(
    stream: &mut impl Read,
    time: Duration,
    enough: &dyn Fn(&str) -> bool,
) -> io::Result<String> {
    let began = Instant::now();
    let mut text = Vec::new();
    let mut piece = [0; 8 * 1024];
    while began.elapsed() < time && !enough(&String::from_utf8_lossy(&text)) {
        match stream.read(&mut piece) {
            Ok(0) => return Err(Error::other("the stream ended")),
            Ok(len) => text.extend_from_slice(&piece[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    // Lengths count bytes: what is no UTF-8 would change them, and JSON has none.
    String::from_utf8(text).map_err(Error::other)
}
