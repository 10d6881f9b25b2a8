//! Connections with programs of other hosts: callers that are let in, and callees that are found there.

use kumo_abi::HostId;
use kumo_abi::call::{Cause, GrantId, Who};
use kumo_abi::control::{Carrier, Granted, Incoming};

use super::open::{Parked, refusal};
use super::words::{Admitted, Asked, Effect, Moment, Order, Refusal};
use super::{ARRIVE_WAIT_MS, Broker, RETRY_BUSY_MS};
use crate::calls::rules::Program;
use crate::calls::rules::grants::{Grant, Party};
use crate::calls::rules::registry::{Instance, NoPlace};

impl Broker {
    /// A caller on another host wants a connection. Its socket is waited for afterwards, for
    /// [`ARRIVE_WAIT_MS`]; see [`Broker::arrived`].
    ///
    /// # Errors
    /// Why it gets none.
    pub(crate) fn admit(
        &mut self,
        asked: Asked<'_>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Result<Admitted, Refusal> {
        let Asked { service, from, chain, carrier } = asked;
        let methods = self.methods(service, &from)?;
        let instance = self.choose(service, chain).map_err(|no| refusal(service, no))?.clone();
        self.check_room()?;
        let busy = || refusal(service, NoPlace { cause: Cause::Busy, path: Vec::new() });
        let grant = GrantId(fresh().max(1));
        let program = instance.program;
        let connection = self.take_connection(program, grant).ok_or_else(busy)?;
        let state = self.programs.get_mut(&program);
        let Some(receipts) = state.and_then(|state| state.take_receipts(connection)) else {
            self.free_connection(program, connection);
            return Err(busy());
        };
        let to = self.peer(program, Who::Service(service.clone()));
        self.awaited.insert(grant, now.ms + ARRIVE_WAIT_MS);
        self.add(Grant {
            id: grant,
            service: service.clone(),
            instance: instance.id,
            caller: Party::There(from.host.clone()),
            callee: Party::Here { program, connection, told: false },
            from,
            to: to.clone(),
            carrier,
            methods: methods.clone(),
            receipts: Some(receipts),
            since_ms: now.ms,
        });
        let Instance { reentrancy, concurrent, .. } = instance;
        Ok(Admitted { grant, serving: instance.serving(), to, methods, reentrancy, concurrent })
    }

    /// The socket of a caller from another host is there: the program that gets it, and what it is told.
    /// Nothing if it came too late.
    pub(crate) fn arrived(&mut self, grant: GrantId) -> Option<(Program, Incoming)> {
        self.awaited.remove(&grant);
        let grant = self.grants.get_mut(&grant)?;
        let Party::Here { program, connection, told } = &mut grant.callee else { return None };
        if *told {
            return None;
        }
        *told = true;
        let incoming = Incoming {
            connection: *connection,
            grant: grant.id,
            instance: grant.instance,
            peer: grant.from.clone(),
            carrier: grant.carrier,
            methods: grant.methods.clone(),
            receipts: grant.receipts,
        };
        Some((*program, incoming))
    }

    /// A program of this host gets a connection to one of `host`: what it is told, beside the socket.
    ///
    /// # Errors
    /// It has ended, or has no room for it: then the other node is told that it is no more.
    pub(crate) fn granted(
        &mut self,
        order: &Order,
        host: &HostId,
        admitted: Admitted,
        carrier: Carrier,
        now: Moment,
    ) -> Result<Granted, Refusal> {
        let Order { program, open, from, .. } = order;
        let (program, request) = (*program, open.request);
        self.answered(program, request);
        let Admitted { grant, serving, to, methods, reentrancy, concurrent } = admitted;
        if self.grants.contains_key(&grant) {
            let message = format!("{host} gave a connection that is there already");
            return Err(Refusal::new(Cause::Malformed, message));
        }
        self.check_room()?;
        let connection = self.take_connection(program, grant).ok_or_else(|| {
            Refusal::new(Cause::Exhausted, "there is no place for another connection")
        })?;
        self.add(Grant {
            id: grant,
            service: open.service.clone(),
            instance: serving.instance,
            caller: Party::Here { program, connection, told: true },
            callee: Party::There(host.clone()),
            from: from.clone(),
            to: to.clone(),
            carrier,
            methods: methods.clone(),
            receipts: None,
            since_ms: now.ms,
        });
        let peer = to;
        Ok(Granted {
            request,
            connection,
            grant,
            serving,
            peer,
            carrier,
            methods,
            reentrancy,
            concurrent,
        })
    }

    /// No other host had what a program wants, `why` from the last that was asked.
    pub(crate) fn nowhere(
        &mut self,
        order: Order,
        why: Option<Refusal>,
        now: Moment,
        fresh: &mut dyn FnMut() -> u64,
    ) -> Vec<Effect> {
        let Order { program, open, otherwise, since_ms, .. } = order;
        let mut effects = Vec::new();
        // What is the matter here is of more use, unless it is that there is nothing here.
        let refusal = match why {
            Some(why) if otherwise.cause == Cause::NoSuch => why,
            _ => otherwise,
        };
        if self.programs.contains_key(&program) {
            let after_ms = now.ms + u64::from(RETRY_BUSY_MS);
            let parked = Parked { program, open, since_ms, after_ms };
            self.refuse_or_park(parked, &refusal, now, &mut effects);
        }
        self.settle(now, fresh, &mut effects);
        effects
    }
}
