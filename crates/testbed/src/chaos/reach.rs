//! A program that calls until it has reached every service once, and says so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use middlecon::OfCluster;
use serde::{Deserialize, Serialize};

use super::{BoxError, method, service};
use crate::cluster::WAIT_MAX;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a service is waited for before it is looked for again.
const CALL_MAX: Duration = Duration::from_secs(1);

/// What it is told in its arguments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) run_dir: PathBuf,
    /// Whom it calls.
    pub(super) services: Vec<String>,
}

pub(super) fn run(orders: &Orders) -> Result<(), BoxError> {
    let began = Instant::now();
    let node = super::connect(&orders.run_dir, PAUSE);
    node.secure_with(Arc::new(OfCluster));
    let nothing = method("nothing");
    for name in &orders.services {
        let calls = node.service(&service(name));
        loop {
            let told = calls.request(&nothing).budget(CALL_MAX).call(&[]);
            let said = told.err().map(|error| error.to_string()).unwrap_or_default();
            // It has no such method, and says so itself.
            if said.contains("has no method") {
                break;
            }
            if began.elapsed() > WAIT_MAX {
                return Err(format!("{name} is not reached: {said}").into());
            }
            std::thread::sleep(PAUSE);
        }
    }
    println!("reached");
    Ok(())
}
