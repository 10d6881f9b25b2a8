//! Watching a service: how many of it answer, told when that changes.

use kumo_abi::call::ServiceName;
use kumo_abi::control::{Request, ServiceState};
use tokio::sync::watch;

use crate::node::Node;

/// How a service is, as long as this lives.
pub struct Watch {
    node: Node,
    request: Request,
    state: watch::Receiver<Option<ServiceState>>,
}

impl Node {
    /// Watches a service. A node that starts anew is asked again.
    pub fn watch(&self, service: &ServiceName) -> Watch {
        let (send, state) = watch::channel(None);
        let hear = Box::new(move |state| drop(send.send(Some(state))));
        let request = self.shared.watch(service.clone(), hear);
        Watch { node: self.clone(), request, state }
    }
}

impl Watch {
    /// As it was told last; nothing if the node has said nothing yet.
    pub fn state(&self) -> Option<ServiceState> {
        self.state.borrow().clone()
    }

    /// Waits until something else is told, and says what; nothing once the node's connection has ended for
    /// good. Dropped, it has missed nothing.
    pub async fn changed(&mut self) -> Option<ServiceState> {
        self.state.changed().await.ok()?;
        self.state.borrow_and_update().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.node.shared.unwatch(self.request);
    }
}
