//! Links leave no descriptors behind. Alone in its process, which it counts them of.

mod link_support;

use kumo_abi::cluster::Role;
use link_support::{
    Host, authority, connect_from, descriptors, identity, is_over, knowing, now_ms, pair, passes,
    until,
};

/// Enough that one lost descriptor in a hundred links shows.
const LINKS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_short_connections_leave_no_descriptors() {
    let (_, gateway, member) = pair().await;
    let other = authority("beta");
    let lost = identity(&other, "tokyo/b", Role::Member);
    let lost = Host::open(knowing(lost, "tokyo/gw", gateway.address())).await;
    let (mut near, mut far) = member.link_to(&gateway).await;
    passes(&mut near, &mut far).await; // All that is opened once is open now.
    let before = descriptors();
    let began_ms = now_ms();
    for turn in 0..LINKS {
        let (mut near, mut far) = member.link_to(&gateway).await;
        match turn % 4 {
            0 => passes(&mut near, &mut far).await,
            1 => drop(near),
            2 => {
                drop(far);
                is_over(&mut near).await;
            }
            _ => {
                // One that is refused, and one that says nothing.
                is_over(&mut lost.dial().await).await;
                let from = "127.0.0.77".parse().expect("an address");
                drop(connect_from(from, gateway.address()).await);
            }
        }
    }
    until("all are closed", || descriptors() <= before).await;
    assert_eq!(gateway.links.reports().len(), 1, "after {} ms", now_ms() - began_ms);
    passes(&mut near, &mut far).await;
}
