//! Flows listed and reset: which of a million a client means, asked of the engines slice by slice, and put into words where
//! nobody waits for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::Prefix;
use crate::engine::Met;
use crate::stack::{Cursor, FlowInfo, State};

use super::answers::{millis, no_flows};
use super::background::{self, Pauses};
use super::guard::{Guard, engine_error};
use super::protocol::{self as wire, Reply, Session, Sort, Which};

/// Which flows, in this side's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    state: Option<State>,
    peer: Option<Prefix>,
    peer_port: Option<u16>,
    local: Option<Prefix>,
    /// The id of a service.
    service: Option<u32>,
    min_age: Option<Duration>,
    max_age: Option<Duration>,
    /// Not these: a client's address and the end it is connected to.
    spared: Option<(IpAddr, SocketAddr)>,
}

impl Filter {
    fn matches(&self, flow: &FlowInfo) -> bool {
        let Self { state, peer, peer_port, local, service, min_age, max_age, spared } = self;
        let (from, to) = (flow.key.peer_addr(), flow.key.local_addr());
        state.is_none_or(|state| flow.state == state)
            && peer.is_none_or(|prefix| prefix.contains(from.ip()))
            && peer_port.is_none_or(|port| from.port() == port)
            && local.is_none_or(|prefix| prefix.contains(to.ip()))
            && service.is_none_or(|id| flow.service == Some(id))
            && min_age.is_none_or(|age| flow.age >= age)
            && max_age.is_none_or(|age| flow.age <= age)
            && spared.is_none_or(|spared| (from.ip(), to) != spared)
    }
}

/// The flows to list: the first ones by their key, or, without an order, the ones that came first.
struct Listed {
    sort: Option<Sort>,
    limit: usize,
    /// The last one in order on top.
    best: BinaryHeap<(Key, usize)>,
    flows: Vec<wire::Flow>,
}

/// What is listed before a lower one: greater numbers, or lower addresses.
type Key = (Reverse<u64>, Option<SocketAddr>);

impl Listed {
    fn new(sort: Option<Sort>, limit: usize) -> Self {
        Self { sort, limit, best: BinaryHeap::new(), flows: Vec::new() }
    }

    fn offer(&mut self, flow: &FlowInfo, list: impl FnOnce() -> wire::Flow) {
        let Some(sort) = self.sort else {
            if self.flows.len() < self.limit {
                self.flows.push(list());
            }
            return;
        };
        let key = key(sort, flow);
        if self.flows.len() < self.limit {
            self.best.push((key, self.flows.len()));
            self.flows.push(list());
        } else if let Some(mut last) = self.best.peek_mut().filter(|last| key < last.0) {
            self.flows[last.1] = list();
            last.0 = key;
        }
    }

    fn into_flows(self) -> Vec<wire::Flow> {
        if self.sort.is_none() {
            return self.flows;
        }
        let mut flows: Vec<_> = self.flows.into_iter().map(Some).collect();
        let order = self.best.into_sorted_vec();
        order.into_iter().filter_map(|(_, index)| flows[index].take()).collect()
    }
}

fn key(sort: Sort, flow: &FlowInfo) -> Key {
    let number = match sort {
        Sort::Age => u64::try_from(flow.age.as_nanos()).unwrap_or(u64::MAX),
        Sort::In => flow.bytes_in,
        Sort::Out => flow.bytes_out,
        Sort::RecvQueued => flow.recv_queued.into(),
        Sort::SendQueued => flow.send_queued.into(),
        Sort::Rtt => flow.rtt.map_or(0, |rtt| u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX)),
        Sort::Peer => 0,
    };
    (Reverse(number), (sort == Sort::Peer).then(|| flow.key.peer_addr()))
}

/// Counts by service.
#[derive(Default)]
struct ByService(BTreeMap<Option<u32>, wire::FlowsOfService>);

impl ByService {
    fn count(&mut self, flow: &FlowInfo) {
        let age = millis(flow.age);
        let sum = self.0.entry(flow.service).or_insert(wire::FlowsOfService {
            service: None,
            flows: 0,
            youngest_ms: age,
            oldest_ms: age,
            bytes_in: 0,
            bytes_out: 0,
        });
        sum.flows += 1;
        sum.youngest_ms = sum.youngest_ms.min(age);
        sum.oldest_ms = sum.oldest_ms.max(age);
        sum.bytes_in += flow.bytes_in;
        sum.bytes_out += flow.bytes_out;
    }
}

impl Guard {
    /// The flows that a client asks for.
    pub(super) async fn list_flows(&self, which: &Which, sort: Option<Sort>, limit: u32) -> Reply {
        let filter = match self.filter(which) {
            Ok(filter) => filter,
            Err(error) => return Reply::bad_input(error),
        };
        self.flows(filter, Listed::new(sort, limit.min(wire::MAX_FLOWS_LISTED) as usize)).await
    }

    /// Resets the flows that a client says.
    pub(super) async fn kill_flows(&self, which: &Which, all: bool, session: Option<Session>) -> Reply {
        if which.is_all() && !all {
            return Reply::bad_input("no condition given: every flow would be reset; --all does that");
        }
        let spared = session.and_then(|session| Some((self.caller(Some(session))?, session.local)));
        let filter = match self.filter(which) {
            Ok(filter) => Filter { spared, ..filter },
            Err(error) => return Reply::bad_input(error),
        };
        let mut killed = 0;
        for engine in self.engines() {
            let filter = filter.clone();
            match engine.handle.kill(move |flow| filter.matches(flow)).await {
                Ok(count) => killed += count,
                Err(source) => return Reply::failed(engine_error(engine, source).to_string()),
            }
        }
        tracing::info!(killed, "flows were reset");
        Reply::FlowsKilled(wire::FlowsKilled { killed })
    }

    fn filter(&self, which: &Which) -> Result<Filter, String> {
        let Which { state, peer, peer_port, local, service, min_age_ms, max_age_ms } = which;
        let state = state.as_deref().map(|name| {
            let found = State::ALL.into_iter().find(|state| state.name() == name);
            found.ok_or_else(|| format!("unknown state `{name}`"))
        });
        let id = service.map(|listen| {
            let known = self.modes.known();
            let found = known.iter().find(|known| known.service.listen == listen);
            found
                .map(|known| known.id)
                .ok_or_else(|| format!("no service {listen}; `tcpguard services` lists them"))
        });
        let prefix = |text: &Option<String>| text.as_deref().map(str::parse::<Prefix>).transpose();
        Ok(Filter {
            state: state.transpose()?,
            peer: prefix(peer)?,
            peer_port: *peer_port,
            local: prefix(local)?,
            service: id.transpose()?,
            min_age: min_age_ms.map(Duration::from_millis),
            max_age: max_age_ms.map(Duration::from_millis),
            spared: None,
        })
    }

    /// Asks the engines slice by slice, and leaves it to a clerk on another thread to make a list of what they say.
    async fn flows(&self, filter: Filter, listed: Listed) -> Reply {
        let places = self.engines().iter().map(|engine| (engine.interface.clone(), engine.queue)).collect();
        let services = self.modes.known().into_iter().map(|known| (known.id, known.service.listen)).collect();
        let clerk = Clerk { filter, listed, places, services };
        // An engine is asked for more when what it said before is nearly dealt with.
        let (slices, said) = mpsc::channel(1);
        let list = background::begin(move || clerk.list(said));
        let mut left_out = Vec::new();
        for (place, engine) in self.engines().iter().enumerate() {
            let mut next = Some(Cursor::START);
            while let Some(start) = next {
                let Some((flows, after)) = self.unless_still(engine, engine.handle.slice(start)).await else {
                    left_out.push(engine.place());
                    break;
                };
                // A clerk that is gone has an answer all the same, below.
                let _ = slices.send((place, flows)).await;
                next = after;
            }
        }
        drop(slices);
        match list.await {
            Ok(flows) => Reply::Flows(wire::Flows { left_out, ..flows }),
            Err(_) => Reply::failed("there is nobody to make the list"),
        }
    }
}

/// Flows that are dealt with before the time is looked at.
const AT_ONCE: usize = 256;

/// Which engine's flows, by its place, and the flows.
type Slice = (usize, Vec<FlowInfo>);

/// Who makes a list of flows.
struct Clerk {
    filter: Filter,
    listed: Listed,
    /// Interface and queue of each engine.
    places: Vec<(String, u32)>,
    /// Where clients connect, by the services' ids.
    services: BTreeMap<u32, SocketAddr>,
}

impl Clerk {
    /// Makes the list of all flows that are said until nothing more is.
    fn list(self, mut said: mpsc::Receiver<Slice>) -> wire::Flows {
        let Self { filter, mut listed, places, services } = self;
        let (mut total, mut states, mut sums) = (0, no_flows(), ByService::default());
        let mut met: Vec<Met> = places.iter().map(|_| Met::default()).collect();
        while let Some((place, flows)) = said.blocking_recv() {
            let mut pauses = Pauses::begin();
            for (at, flow) in flows.iter().enumerate().filter(|(_, flow)| met[place].is_new(flow)) {
                if at % AT_ONCE == 0 {
                    pauses.take();
                }
                if let Some(count) = states.get_mut(flow.state.name()) {
                    *count += 1;
                }
                if filter.matches(flow) {
                    total += 1;
                    sums.count(flow);
                    listed.offer(flow, || described(flow, &places[place], &services));
                }
            }
            pauses.take();
        }
        let sums = sums.0.into_iter().map(|(id, sum)| wire::FlowsOfService {
            service: id.and_then(|id| services.get(&id).copied()),
            ..sum
        });
        let flows = listed.into_flows();
        wire::Flows { total, states, services: sums.collect(), flows, left_out: Vec::new() }
    }
}

fn described(
    flow: &FlowInfo,
    (interface, queue): &(String, u32),
    services: &BTreeMap<u32, SocketAddr>,
) -> wire::Flow {
    wire::Flow {
        state: flow.state.name().into(),
        local: flow.key.local_addr(),
        peer: flow.key.peer_addr(),
        service: flow.service.and_then(|id| services.get(&id).copied()),
        age_ms: millis(flow.age),
        bytes_in: flow.bytes_in,
        bytes_out: flow.bytes_out,
        recv_queued: flow.recv_queued.into(),
        send_queued: flow.send_queued.into(),
        rtt_us: flow.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        timer_ms: flow.timer.map(millis),
        syn_ack_retransmits: flow.syn_ack_retransmits.map(u64::from),
        interface: interface.clone(),
        queue: *queue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcpguard_common::flow::AnyFlowKey;

    fn flow(port: u16, age: u64) -> FlowInfo {
        let key = AnyFlowKey::new(([10, 0, 0, 2], port).into(), ([10, 0, 0, 1], 80).into());
        let age = Duration::from_secs(age);
        let flow = FlowInfo::without_data(key.unwrap(), State::Established, Some(3), age);
        FlowInfo { bytes_in: age.as_secs() * 10, ..flow }
    }

    fn listed(flow: &FlowInfo) -> wire::Flow {
        wire::Flow {
            state: "".into(),
            local: flow.key.local_addr(),
            peer: flow.key.peer_addr(),
            service: None,
            age_ms: millis(flow.age),
            bytes_in: flow.bytes_in,
            bytes_out: 0,
            recv_queued: 0,
            send_queued: 0,
            rtt_us: None,
            timer_ms: None,
            syn_ack_retransmits: None,
            interface: String::new(),
            queue: 0,
        }
    }

    fn ports(sort: Option<Sort>, limit: usize) -> Vec<u16> {
        let mut list = Listed::new(sort, limit);
        for (port, age) in [(5, 50), (1, 10), (4, 40), (2, 20), (3, 30)] {
            let flow = flow(port, age);
            list.offer(&flow, || listed(&flow));
        }
        list.into_flows().iter().map(|flow| flow.peer.port()).collect()
    }

    #[test]
    fn the_first_ones_in_order_are_listed_and_no_more_than_wanted() {
        assert_eq!(ports(None, 3), [5, 1, 4]);
        assert_eq!(ports(Some(Sort::Age), 3), [5, 4, 3]);
        assert_eq!(ports(Some(Sort::In), 9), [5, 4, 3, 2, 1]);
        assert_eq!(ports(Some(Sort::Peer), 2), [1, 2]);
        assert_eq!(ports(Some(Sort::Age), 0), [0u16; 0]);
    }

    #[test]
    fn a_list_has_each_flow_once_with_its_engine_and_service_and_counts_them_all() {
        let (slices, said) = mpsc::channel(3);
        let moved = FlowInfo { state: State::TimeWait, ..flow(1, 40) };
        for slice in [(0, vec![flow(1, 10), flow(2, 20)]), (0, vec![moved]), (1, vec![flow(2, 30)])] {
            slices.blocking_send(slice).unwrap();
        }
        drop(slices);
        let clerk = Clerk {
            filter: Filter { min_age: Some(Duration::from_secs(15)), ..Filter::default() },
            listed: Listed::new(Some(Sort::Age), 9),
            places: vec![("eth0".to_owned(), 0), ("eth1".to_owned(), 3)],
            services: BTreeMap::from([(3, ([10, 0, 0, 1], 80).into())]),
        };
        let list = clerk.list(said);
        let listed: Vec<_> =
            list.flows.iter().map(|flow| (flow.peer.port(), flow.interface.as_str(), flow.queue)).collect();
        assert_eq!(listed, [(2, "eth1", 3), (2, "eth0", 0)]);
        assert_eq!((list.total, list.states["ESTABLISHED"], list.states["TIME_WAIT"]), (2, 3, 0));
        let [sum] = list.services.as_slice() else { panic!("one service") };
        assert_eq!((sum.service, sum.flows), (Some(([10, 0, 0, 1], 80).into()), 2));
    }

    #[test]
    fn a_flow_has_to_meet_every_condition() {
        let all = Filter::default();
        let flow = flow(5, 50);
        let prefix = |text: &str| Some(text.parse().unwrap());
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (filter, expected) in [
            (all.clone(), true),
            (Filter { state: Some(State::Established), ..all.clone() }, true),
            (Filter { state: Some(State::TimeWait), ..all.clone() }, false),
            (Filter { peer: prefix("10.0.0.0/30"), local: prefix("10.0.0.1"), ..all.clone() }, true),
            (Filter { peer: prefix("10.0.0.0/30"), local: prefix("10.0.0.2"), ..all.clone() }, false),
            (Filter { peer: prefix("::/0"), ..all.clone() }, false),
            (Filter { peer_port: Some(6), ..all.clone() }, false),
            (Filter { service: Some(3), min_age: seconds(50), max_age: seconds(50), ..all.clone() }, true),
            (Filter { service: Some(4), ..all.clone() }, false),
            (Filter { min_age: seconds(51), ..all.clone() }, false),
            (Filter { max_age: seconds(49), ..all.clone() }, false),
            (Filter { spared: Some(("10.0.0.2".parse().unwrap(), flow.key.local_addr())), ..all }, false),
        ] {
            assert_eq!(filter.matches(&flow), expected, "{filter:?}");
        }
    }
}
