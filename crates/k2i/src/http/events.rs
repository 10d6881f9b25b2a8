//! `/v2/events`: processes that begin and end, as it happens.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use kumo_abi::events::{EVENTS, EventColumn};
use kumo_abi::proc::Column;
use kumo_abi::rights::Lines;
use kumo_abi::{Filter, Query, QueryText, Select, Value};
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use utoipa::OpenApi;

use super::guard::Shown;
use super::stream::{self, Form, Over, Teller};
use super::{Api, Refused, v2};
use crate::encode::{document, write_value};
use crate::engine::Engine;
use crate::events::{Event, Losses, News};
use crate::row;

/// What is told of an event when nobody says. What it does not know is null.
pub const EVENT_COLUMNS_DEFAULT: &str =
    "event,at,id,pid,ppid,user,comm,cmdline,exit_code,exit_signal,lifetime,time";

/// Events that are there are told in pieces of at least this size, rather than one by one.
const PIECE_BYTES: usize = 16 * 1024;

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v2/events", get(events))
}

#[derive(OpenApi)]
#[openapi(paths(events))]
pub(super) struct Paths;

/// Processes that begin and end, from now on, as lines or server-sent events
///
/// A stream that does not end. An empty line or comment says that nothing happens.
#[utoipa::path(
    get, path = "/v2/events",
    params(
        ("columns" = Option<String>, Query, description = "Columns of an event, with commas in between"),
        ("filter" = Option<String>, Query, description = "A condition in CEL over its columns"),
    ),
    responses(
        (status = 200, content((String = "application/x-ndjson"), (String = "text/event-stream"))),
        (status = 501, description = "Events are not taken here"),
    ),
)]
async fn events(
    State(api): State<Arc<Api>>,
    Shown(lines): Shown,
    request: Request,
) -> Result<Response, Refused> {
    let form = Form::choose(request.headers())?;
    let mut text = QueryText::default();
    for (name, value) in super::parameters(request.uri(), &["columns", "filter"])? {
        match name.as_str() {
            "columns" => text.columns = Some(v2::plus(value)),
            _ => text.filter = Some(value),
        }
    }
    let wanted = Wanted::parse(&text, lines)?;
    let news = api.engine().events()?;
    let (response, teller) = stream::begin(&api, request.extensions(), form)?;
    let engine = Arc::clone(api.engine());
    tokio::spawn(async move { tell(&engine, &wanted, news, teller).await });
    Ok(response)
}

/// Which events, and what of them.
struct Wanted {
    columns: Vec<EventColumn>,
    /// `{"event":`, `,"at":` and so on.
    keys: Vec<Vec<u8>>,
    filter: Option<Filter>,
    /// What of a process is read.
    read: Vec<Column>,
    /// How command lines are shown, and read by the filter.
    lines: Lines,
}

impl Wanted {
    fn parse(text: &QueryText, lines: Lines) -> Result<Wanted, Refused> {
        let query = Query::parse(text, &EVENTS, EVENT_COLUMNS_DEFAULT)?;
        if query.is_grouped() {
            return Err(Refused::bad_request("a stream has no aggregates: it never ends"));
        }
        let read = query.columns_read();
        let of = |select: &Select| match select {
            Select::Column(index) => Some(EventColumn::at(*index)),
            Select::Aggregate(_) => None,
        };
        let mut columns: Vec<EventColumn> = query.columns.iter().filter_map(of).collect();
        // What is told beside events is known by it.
        columns.retain(|column| *column != EventColumn::Event);
        columns.insert(0, EventColumn::Event);
        let key = |(index, column): (usize, &EventColumn)| {
            let mut key = vec![if index == 0 { b'{' } else { b',' }];
            write_value(&mut key, &Value::text(column.name()));
            key.push(b':');
            key
        };
        let keys = columns.iter().enumerate().map(key).collect();
        let read = read.into_iter().filter_map(|index| match EventColumn::at(index) {
            EventColumn::Of(column) => Some(column),
            EventColumn::Event | EventColumn::At => None,
        });
        Ok(Wanted { columns, keys, read: read.collect(), filter: query.filter, lines })
    }

    /// Appends an event, if it is wanted.
    fn write(&self, engine: &Engine, event: &Event, form: Form, out: &mut Vec<u8>) {
        let context = engine.event_context(&self.read, event.life.row(), self.lines);
        let row = &context.table.rows[0];
        let value = |column: EventColumn| match column {
            EventColumn::Event => Value::text(event.kind.name()),
            EventColumn::At => row::moment(event.at_ns, &context.table),
            EventColumn::Of(column) => row::value(column, row, 0, &context),
        };
        if self.filter.as_ref().is_some_and(|f| !f.matches(&|index| value(EventColumn::at(index))))
        {
            return;
        }
        let mut line = Vec::with_capacity(256);
        for (key, column) in self.keys.iter().zip(&self.columns) {
            line.extend_from_slice(key);
            write_value(&mut line, &value(*column));
        }
        line.push(b'}');
        form.write(out, event.kind.name(), &line);
    }
}

/// Tells until nobody listens. A client that is too slow is told how many events it missed.
async fn tell(engine: &Engine, wanted: &Wanted, mut news: Receiver<News>, mut teller: Teller) {
    let form = teller.form();
    loop {
        let mut out = Vec::new();
        let first = match teller.next(news.recv()).await {
            Ok(Ok(first)) => Some(first),
            Ok(Err(RecvError::Lagged(count))) => {
                missed(count, form, &mut out);
                None
            }
            Ok(Err(RecvError::Closed)) | Err(Over) => return,
        };
        let mut next = first;
        while out.len() < PIECE_BYTES {
            match next.take() {
                Some(News::Event(event)) => wanted.write(engine, &event, form, &mut out),
                Some(News::Lost(losses)) => lost(losses, form, &mut out),
                None => {}
            }
            match news.try_recv() {
                Ok(one) => next = Some(one),
                Err(TryRecvError::Lagged(count)) => missed(count, form, &mut out),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        match next {
            Some(News::Event(event)) => wanted.write(engine, &event, form, &mut out),
            Some(News::Lost(losses)) => lost(losses, form, &mut out),
            None => {}
        }
        if !out.is_empty() && teller.tell(out).await.is_err() {
            return;
        }
    }
}

fn missed(count: u64, form: Form, out: &mut Vec<u8>) {
    form.write(out, "missed", &document(&json!({ "event": "missed", "missed": count })));
}

fn lost(losses: Losses, form: Form, out: &mut Vec<u8>) {
    form.write(out, "lost", &document(&json!({ "event": "lost", "lost": losses })));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted() {
        let parse = |columns: &str, filter: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let text =
                QueryText { columns: some(columns), filter: some(filter), ..QueryText::default() };
            Wanted::parse(&text, Lines::Whole).map(|wanted| {
                let names: Vec<_> = wanted.columns.iter().map(|column| column.name()).collect();
                (names.join(","), wanted.read)
            })
        };
        let wanted = parse("pid,at", "event == 'exit' && exit_code != 0").expect("good");
        assert_eq!(wanted, ("event,pid,at".to_owned(), vec![Column::Pid, Column::ExitCode]));
        let (names, _) = parse("", "").expect("good");
        assert_eq!(names, EVENT_COLUMNS_DEFAULT);
        for (columns, filter) in [("count()", ""), ("cpu", ""), ("", "cpu > 1.0"), ("", "pid")] {
            assert!(parse(columns, filter).is_err(), "for {columns:?} and {filter:?}");
        }
    }
}
