//! Calls and handlers of values in the place of bytes, written as JSON or postcard by serde.
//!
//! Both ends must speak one of them; nothing on the wire says which. Bytes that cannot be read are an error
//! with a code of its own and never a panic, for they come from others.

use bytes::Bytes;
use kumo_abi::call::{Cause, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::tasks::{AsyncRequest, AsyncService};
use crate::client::threads::{Request, Service};
use crate::error::{CODE_QUESTION_UNREADABLE, CODE_REPLY_UNREADABLE, CODE_REPLY_UNWRITABLE};
use crate::error::{CallError, Failure};
use crate::server::tasks::{AsyncBuilder, AsyncCall};
use crate::server::threads::{Builder, Call};

/// How values become bytes.
trait Format {
    const NAME: &'static str;
    fn write<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String>;
    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String>;
}

#[cfg(feature = "json")]
struct Json;

#[cfg(feature = "json")]
impl Format for Json {
    const NAME: &'static str = "JSON";

    fn write<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
        serde_json::to_vec(value).map_err(|error| error.to_string())
    }

    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

#[cfg(feature = "postcard")]
struct Postcard;

#[cfg(feature = "postcard")]
impl Format for Postcard {
    const NAME: &'static str = "postcard";

    fn write<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
        postcard::to_stdvec(value).map_err(|error| error.to_string())
    }

    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
        // What is left over was meant for another type.
        match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(format!("{} bytes are left over", rest.len())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Nothing was sent.
fn question<F: Format, Q: Serialize + ?Sized>(question: &Q) -> Result<Vec<u8>, CallError> {
    F::write(question).map_err(|error| {
        let message = format!("the question cannot be written as {}: {error}", F::NAME);
        CallError::not_executed(Cause::Malformed, message)
    })
}

/// The handler ran to its end, and what it said is lost: nobody may think that it did not run.
fn reply<F: Format, R: DeserializeOwned>(bytes: &[u8]) -> Result<R, CallError> {
    F::read(bytes).map_err(|error| CallError::Failed {
        code: CODE_REPLY_UNREADABLE,
        message: format!("it was executed, but its reply cannot be read as {}: {error}", F::NAME),
    })
}

fn asked<F: Format, Q: DeserializeOwned>(bytes: &[u8]) -> Result<Q, Failure> {
    F::read(bytes).map_err(|error| {
        let message = format!("the question cannot be read as {}: {error}", F::NAME);
        Failure::new(CODE_QUESTION_UNREADABLE, message)
    })
}

fn answer<F: Format, R: Serialize>(value: &R) -> Result<Bytes, Failure> {
    F::write(value).map(Bytes::from).map_err(|error| {
        let message = format!("the reply cannot be written as {}: {error}", F::NAME);
        Failure::new(CODE_REPLY_UNWRITABLE, message)
    })
}

/// The public methods of one format.
macro_rules! methods {
    ($feature:literal, $format:ident, $name:literal, $call:ident, $method:ident) => {
        #[cfg(feature = $feature)]
        impl Service {
            #[doc = concat!("As [`Service::call`], with a question and a reply in ", $name, ".")]
            ///
            /// # Errors
            /// Also `NotExecuted` for a question that cannot be written, and `Failed` with
            /// [`CODE_REPLY_UNREADABLE`](crate::CODE_REPLY_UNREADABLE) for a reply that cannot be read.
            pub fn $call<Q: Serialize + ?Sized, R: DeserializeOwned>(
                &self,
                method: &Method,
                question: &Q,
            ) -> Result<R, CallError> {
                self.request(method).$call(question)
            }
        }

        #[cfg(feature = $feature)]
        impl Request<'_> {
            #[doc = concat!("As [`Request::call`], with a question and a reply in ", $name, ".")]
            ///
            /// # Errors
            /// As of the method of the same name of [`Service`].
            pub fn $call<Q: Serialize + ?Sized, R: DeserializeOwned>(
                self,
                asked: &Q,
            ) -> Result<R, CallError> {
                reply::<$format, R>(&self.call(&question::<$format, Q>(asked)?)?)
            }
        }

        #[cfg(feature = $feature)]
        impl AsyncService {
            #[doc = concat!("As [`AsyncService::call`], with a question and a reply in ", $name, ".")]
            ///
            /// # Errors
            /// As of the method of the same name of [`Service`].
            pub async fn $call<Q: Serialize + Sync + ?Sized, R: DeserializeOwned>(
                &self,
                method: &Method,
                question: &Q,
            ) -> Result<R, CallError> {
                self.request(method).$call(question).await
            }
        }

        #[cfg(feature = $feature)]
        impl AsyncRequest<'_> {
            #[doc = concat!("As [`AsyncRequest::call`], with a question and a reply in ", $name, ".")]
            ///
            /// # Errors
            /// As of the method of the same name of [`Service`].
            pub async fn $call<Q: Serialize + Sync + ?Sized, R: DeserializeOwned>(
                self,
                asked: &Q,
            ) -> Result<R, CallError> {
                let body = question::<$format, Q>(asked)?;
                reply::<$format, R>(&self.call(&body).await?)
            }
        }

        #[cfg(feature = $feature)]
        impl Builder {
            #[doc = concat!("As [`Builder::method`], with a question and a reply in ", $name, ".")]
            /// A question that cannot be read is answered with the code
            /// [`CODE_QUESTION_UNREADABLE`](crate::CODE_QUESTION_UNREADABLE); the handler does not run.
            ///
            /// # Panics
            /// If two of a server's methods have the same number: rename one.
            pub fn $method<Q: DeserializeOwned, R: Serialize>(
                self,
                method: &Method,
                handler: impl Fn(&mut Call<'_>, Q) -> Result<R, Failure> + Send + Sync + 'static,
            ) -> Builder {
                self.method(method, move |call| {
                    let question = asked::<$format, Q>(&call.body)?;
                    answer::<$format, R>(&handler(call, question)?)
                })
            }
        }

        #[cfg(feature = $feature)]
        impl AsyncBuilder {
            #[doc = concat!("As [`AsyncBuilder::method`], with a question and a reply in ", $name, ".")]
            /// A question that cannot be read is answered with the code
            /// [`CODE_QUESTION_UNREADABLE`](crate::CODE_QUESTION_UNREADABLE); the handler does not run.
            ///
            /// # Panics
            /// If two of a server's methods have the same number: rename one.
            pub fn $method<Q, R, F>(
                self,
                method: &Method,
                handler: impl Fn(AsyncCall, Q) -> F + Send + Sync + 'static,
            ) -> AsyncBuilder
            where
                Q: DeserializeOwned,
                R: Serialize,
                F: Future<Output = Result<R, Failure>> + Send + 'static,
            {
                self.method(method, move |call| {
                    let running = asked::<$format, Q>(&call.body).map(|asked| handler(call, asked));
                    async move { answer::<$format, R>(&running?.await?) }
                })
            }
        }
    };
}

methods!("json", Json, "JSON", call_json, method_json);
methods!("postcard", Postcard, "postcard", call_postcard, method_postcard);
