//! Calls of values: both formats, both kinds of callers and callees, and bytes that are something else.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use kumo_abi::call::{Cause, Method};
use middlecon::{
    CODE_QUESTION_UNREADABLE, CODE_REPLY_UNREADABLE, CODE_REPLY_UNWRITABLE, CallError, Failure,
    Node,
};
use serde::{Deserialize, Serialize};
use support::TestNode;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    item: String,
    count: u32,
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

/// Keys that JSON does not have.
type Odd = BTreeMap<(u8, u8), u8>;

fn odd() -> Odd {
    BTreeMap::from([((1, 2), 3)])
}

fn double(order: Order) -> Result<Order, Failure> {
    match order.count {
        0 => Err(Failure::new(9, "nothing is ordered")),
        count => Ok(Order { count: 2 * count, ..order }),
    }
}

fn failed(told: &CallError, code: u32, words: &str) {
    let CallError::Failed { code: said, message } = told else { panic!("{told}") };
    assert!(*said == code && message.contains(words), "{told}");
}

#[test]
fn threads_speak_values_and_what_cannot_be_read_has_a_code() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let _server = here
        .serve(&"shop".parse().unwrap())
        .method_json(&method("json"), |_, order: Order| double(order))
        .method_postcard(&method("postcard"), |_, order: Order| double(order))
        .method_json(&method("odd"), |_, (): ()| Ok(odd()))
        .method(&method("noise"), |_| Ok(Bytes::from_static(b"\xff")))
        .start()
        .unwrap();
    let shop = here.service(&"shop".parse().unwrap());
    let order = |count| Order { item: "tea".to_owned(), count };
    assert_eq!(shop.call_json(&method("json"), &order(2)), Ok(order(4)));
    assert_eq!(shop.call_postcard(&method("postcard"), &order(2)), Ok(order(4)));
    failed(&shop.call_json::<_, Order>(&method("json"), &order(0)).unwrap_err(), 9, "nothing");
    for name in ["json", "postcard"] {
        let told = shop.call(&method(name), b"\"").unwrap_err();
        failed(&told, CODE_QUESTION_UNREADABLE, "cannot be read as");
    }
    let long = [postcard::to_stdvec(&order(1)).unwrap(), vec![0]].concat();
    let told = shop.call(&method("postcard"), &long).unwrap_err();
    failed(&told, CODE_QUESTION_UNREADABLE, "1 bytes are left over");
    let told = shop.call_json::<_, Order>(&method("odd"), &()).unwrap_err();
    failed(&told, CODE_REPLY_UNWRITABLE, "key must be a string");
    for told in [
        shop.call_json::<_, Order>(&method("noise"), &()).unwrap_err(),
        shop.call_postcard::<_, Order>(&method("noise"), &()).unwrap_err(),
    ] {
        failed(&told, CODE_REPLY_UNREADABLE, "it was executed");
    }
    let told = shop.call_json::<_, ()>(&method("json"), &odd()).unwrap_err();
    assert!(matches!(told, CallError::NotExecuted { cause: Cause::Malformed, .. }), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_speak_values_too() {
    let node = TestNode::start();
    let here = Node::connect(node.run_dir()).unwrap();
    let server = here
        .serve_async(&"shop".parse().unwrap())
        .method_json(&method("json"), |_, order: Order| async move { double(order) })
        .method_postcard(&method("postcard"), |_, order: Order| async move { double(order) });
    let server = server.start().await.unwrap();
    let shop = here.service_async(&"shop".parse().unwrap());
    let order = |count| Order { item: "tea".to_owned(), count };
    assert_eq!(shop.call_json(&method("json"), &order(3)).await, Ok(order(6)));
    assert_eq!(shop.call_postcard(&method("postcard"), &order(3)).await, Ok(order(6)));
    let told = shop.call_json::<_, Order>(&method("json"), "no order").await.unwrap_err();
    failed(&told, CODE_QUESTION_UNREADABLE, "JSON");
    let name = method("postcard");
    let told =
        shop.request(&name).priority(3).call_postcard::<_, Order>(&order(0)).await.unwrap_err();
    failed(&told, 9, "nothing");
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}
