//! tonic: unary calls of bytes, without protobuf, by tasks over one HTTP/2 connection.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use tokio::net::{TcpListener, UnixListener};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::super::{Answer, AskTask, Callers, Place, runtime};

/// Messages are bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Plain;
    type Decoder = Plain;
    fn encoder(&mut self) -> Plain {
        Plain
    }
    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.len());
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

async fn echo(request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    Ok(Response::new(request.into_inner()))
}

async fn serve(
    request: http::Request<tonic::body::Body>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let mut grpc = tonic::server::Grpc::new(Plain);
    Ok(grpc.unary(tower::service_fn(echo), request).await)
}

pub(super) fn answer(place: &Place, ready: &dyn Fn(&str)) -> io::Result<()> {
    let service = tower::service_fn(serve);
    runtime()?.block_on(async {
        if place.id == "grpc-unix" {
            let listener = UnixListener::bind(place.socket())?;
            ready(&format!("unix:{}", place.socket().display()));
            let incoming =
                futures_util::stream::poll_fn(move |cx| match listener.poll_accept(cx) {
                    Poll::Ready(accepted) => Poll::Ready(Some(accepted.map(|(stream, _)| stream))),
                    Poll::Pending => Poll::Pending,
                });
            let server = Server::builder().serve_with_incoming(service, incoming);
            return server.await.map_err(io::Error::other);
        }
        let listener = TcpListener::bind((place.ip, 0)).await?;
        ready(&format!("http://{}", listener.local_addr()?));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().serve_with_incoming(service, incoming);
        server.await.map_err(io::Error::other)
    })
}

struct Grpc(Channel);

impl AskTask for Grpc {
    fn ask(&self, question: Bytes) -> Answer<'_> {
        Box::pin(async move {
            // A clone for each call, as generated clients do it.
            let mut grpc = tonic::client::Grpc::new(self.0.clone());
            grpc.ready().await.map_err(io::Error::other)?;
            let path = PathAndQuery::from_static("/bench.Echo/Echo");
            let answer = grpc.unary(Request::new(question), path, Plain).await;
            Ok(answer.map_err(io::Error::other)?.into_inner())
        })
    }
}

pub(super) fn callers(place: &Place) -> io::Result<Callers> {
    let runtime = runtime()?;
    let endpoint = Endpoint::from_shared(place.said.clone()).map_err(io::Error::other)?;
    let channel = runtime.block_on(endpoint.connect()).map_err(io::Error::other)?;
    Ok(Callers::Tasks(runtime, Rc::new(Grpc(channel))))
}
