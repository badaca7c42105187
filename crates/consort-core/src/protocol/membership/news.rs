//! What members tell about themselves, and how that gets to all: each record is passed on a few times by everybody who
//! hears it first, in what room datagrams have.
//!
//! Foca can carry such records too, but lets nobody look at what it holds, so they stand behind its part of a datagram.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use super::wire::MAX_DATAGRAM_BYTES;
use crate::encoding::{DecodeError, Reader, Writer};
use crate::model::id::NodeId;
use crate::time::Instant;

/// Datasets of one record.
const PAGE_DATASETS: usize = 8;
/// Records of one member.
const MAX_PAGES: usize = 4;
/// Datasets that a member tells about; of more, others know nothing.
pub const MAX_NEWS_DATASETS: usize = PAGE_DATASETS * MAX_PAGES;
/// Records that wait to be passed on. Those that were passed on most give way.
const MAX_WAITING: usize = 1024;

/// The shortest time between two records of a member.
const TELL_AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// And for each member of the cluster, so that what a node passes on does not grow with it.
const TELL_AT_MOST_EVERY_PER_MEMBER: Duration = Duration::from_millis(30);
/// What has not changed is told again after so many times that.
const TELL_AGAIN: u32 = 10;

/// The most bytes of a record: identity, process and number, page, load, address, then
/// datasets.
const MAX_RECORD_BYTES: usize =
    16 + 4 + 5 + 1 + 3 + 3 + 10 + 19 + 1 + PAGE_DATASETS * (8 + 8 + 3 * 10 + 1);

// A record fits into a datagram beside all that foca may say.
const _: () = assert!(super::wire::MAX_SWIM_BYTES + 2 <= MAX_DATAGRAM_BYTES);
const _: () = assert!(2 + MAX_RECORD_BYTES + 128 <= MAX_DATAGRAM_BYTES);

/// What a member tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// How many neighbours it has. [`Membership`](super::Membership) fills it in.
    pub links: u16,
    /// How many of them pass on what they receive. Filled in, too.
    pub sources: u16,
    /// Bytes a second at its sockets, about.
    pub rate: u64,
    /// Where it believes that it can be reached.
    pub address: Option<SocketAddr>,
    /// Its datasets; at most [`MAX_NEWS_DATASETS`] of them are told.
    pub datasets: Vec<DatasetNews>,
}

/// How a member stands with a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatasetNews {
    /// The front of the dataset's identity.
    pub dataset: u64,
    /// The front of the digest's sum: equal on members that hold the same.
    pub digest: u64,
    /// How many versions it holds.
    pub versions: u64,
    /// The end of its feed.
    pub head: u64,
    /// What it knows of, and does not show in its directory yet.
    pub pending: u64,
    /// A directory of its is linked, so that it has contents as well.
    pub linked: bool,
}

/// What orders the records of a member: its process, and a number that rises.
type Edition = (u32, u32);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    node: NodeId,
    edition: Edition,
    page: u8,
    news: News,
}

/// All news, and what of them is to be passed on.
#[derive(Debug)]
pub(super) struct Board {
    own: NodeId,
    edition: Edition,
    /// What this node told last, and when.
    told: Option<(Instant, News)>,
    members: BTreeMap<NodeId, Option<Heard>>,
    /// By how often it was passed on, then by when it came.
    waiting: BTreeMap<(u8, u64), Waiting>,
    places: BTreeMap<(NodeId, u8), (u8, u64)>,
    next: u64,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    editions: [Edition; MAX_PAGES],
    /// The datasets of each page stand together.
    pages: [usize; MAX_PAGES],
    news: News,
}

#[derive(Debug)]
struct Waiting {
    node: NodeId,
    page: u8,
    bytes: Vec<u8>,
}

impl Board {
    pub(super) fn new(own: NodeId, started: u32) -> Self {
        Self {
            own,
            edition: (started, 0),
            told: None,
            members: BTreeMap::new(),
            waiting: BTreeMap::new(),
            places: BTreeMap::new(),
            next: 0,
        }
    }

    /// How often a member of a cluster of this size may tell something.
    pub(super) fn pace(members: usize) -> Duration {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        TELL_AT_MOST_EVERY.max(TELL_AT_MOST_EVERY_PER_MEMBER.saturating_mul(members))
    }

    /// Keeps news of these members, and of nobody else.
    pub(super) fn keep(&mut self, members: impl Iterator<Item = NodeId>) {
        let mut old = core::mem::take(&mut self.members);
        self.members = members.map(|node| (node, old.remove(&node).flatten())).collect();
    }

    /// What was heard of a member last, and when.
    pub(super) fn of(&self, node: NodeId) -> Option<(Instant, &News)> {
        let heard = self.members.get(&node)?.as_ref()?;
        Some((heard.at, &heard.news))
    }

    /// Tells the others how this node stands, unless that is what they were told already, not long ago.
    pub(super) fn post(&mut self, mut news: News, members: usize, now: Instant) {
        news.datasets.truncate(MAX_NEWS_DATASETS);
        if let Some((at, told)) = &self.told {
            let again = *at + Self::pace(members) * TELL_AGAIN;
            // The rate alone is no news.
            let same = News { rate: told.rate, ..news.clone() } == *told;
            if same && now < again {
                return;
            }
        }
        self.told = Some((now, news.clone()));
        self.edition.1 += 1;
        let pages: Vec<&[DatasetNews]> = match news.datasets.chunks(PAGE_DATASETS).collect() {
            pages if Vec::is_empty(&pages) => [&[][..]].into(),
            pages => pages,
        };
        for (page, datasets) in (0..).zip(pages) {
            let news = News { datasets: datasets.to_vec(), ..news.clone() };
            let record = Record { node: self.own, edition: self.edition, page, news };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            self.wait(self.own, page, bytes);
        }
    }

    pub(super) fn has_something_to_tell(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes in the news of a datagram. What is not understood ends it; what came before holds.
    pub(super) fn receive(&mut self, news: &[u8], now: Instant) {
        let mut from = Reader::new(news);
        while !from.is_empty() {
            let before = from.clone();
            let Ok(record) = Record::decode(&mut from) else { return };
            let length = before.remaining() - from.remaining();
            if self.take(&record, now) {
                let bytes = before.clone().raw(length, "news").unwrap_or_default().to_vec();
                self.wait(record.node, record.page, bytes);
            }
        }
    }

    /// Fills the rest of a datagram with what was passed on least.
    pub(super) fn fill(&mut self, datagram: &mut Vec<u8>, members: usize) {
        let repeat = repeat(members);
        let mut room = MAX_DATAGRAM_BYTES.saturating_sub(datagram.len());
        let mut taken = Vec::new();
        for (&place, waiting) in &self.waiting {
            if waiting.bytes.len() <= room {
                datagram.extend_from_slice(&waiting.bytes);
                room -= waiting.bytes.len();
                taken.push(place);
            }
            if room < LEAST_RECORD_BYTES {
                break;
            }
        }
        for place in taken {
            let Some(waiting) = self.waiting.remove(&place) else { continue };
            let (times, number) = place;
            if times + 1 < repeat {
                self.places.insert((waiting.node, waiting.page), (times + 1, number));
                self.waiting.insert((times + 1, number), waiting);
            } else {
                self.places.remove(&(waiting.node, waiting.page));
            }
        }
    }

    /// Whether a record is news.
    fn take(&mut self, record: &Record, now: Instant) -> bool {
        let Some(slot) = self.members.get_mut(&record.node) else { return false };
        let heard = slot.get_or_insert_with(|| Heard {
            at: now,
            editions: [(0, 0); MAX_PAGES],
            pages: [0; MAX_PAGES],
            news: News::default(),
        });
        let page = usize::from(record.page);
        if record.edition <= heard.editions[page] {
            return false;
        }
        let newest = heard.editions.iter().all(|edition| *edition <= record.edition);
        heard.editions[page] = record.edition;
        let start: usize = heard.pages[..page].iter().sum();
        let end = start + heard.pages[page];
        heard.news.datasets.splice(start..end, record.news.datasets.iter().copied());
        heard.pages[page] = record.news.datasets.len();
        // A page that is not full is the last one.
        if record.news.datasets.len() < PAGE_DATASETS
            && heard.editions[page + 1..].iter().all(|e| *e < record.edition)
        {
            heard.news.datasets.truncate(start + heard.pages[page]);
            heard.pages[page + 1..].fill(0);
        }
        if newest {
            heard.at = now;
            let datasets = core::mem::take(&mut heard.news.datasets);
            heard.news = News { datasets, ..record.news };
        }
        true
    }

    fn wait(&mut self, node: NodeId, page: u8, bytes: Vec<u8>) {
        if let Some(place) = self.places.remove(&(node, page)) {
            self.waiting.remove(&place);
        }
        let place = (0, self.next);
        self.next += 1;
        self.places.insert((node, page), place);
        self.waiting.insert(place, Waiting { node, page, bytes });
        if MAX_WAITING < self.waiting.len()
            && let Some((_, waiting)) = self.waiting.pop_last()
        {
            self.places.remove(&(waiting.node, waiting.page));
        }
    }
}

/// How often everybody passes on a record: enough to reach all, with a margin for loss.
fn repeat(members: usize) -> u8 {
    let bits = usize::BITS - members.leading_zeros();
    u8::try_from(3 + bits).unwrap_or(u8::MAX)
}

/// A record without datasets.
const LEAST_RECORD_BYTES: usize = 16 + 4 + 1 + 1 + 1 + 1 + 1 + 1 + 1;

impl Record {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let mut to = Writer(bytes);
        to.raw(&self.node.0);
        to.raw(&self.edition.0.to_le_bytes());
        to.varint(self.edition.1.into());
        to.u8(self.page);
        to.varint(self.news.links.into());
        to.varint(self.news.sources.into());
        to.varint(self.news.rate);
        match self.news.address.map(|address| (address.ip(), address.port())) {
            None => to.u8(0),
            Some((IpAddr::V4(ip), port)) => {
                to.u8(4);
                to.raw(&ip.octets());
                to.raw(&port.to_le_bytes());
            }
            Some((IpAddr::V6(ip), port)) => {
                to.u8(6);
                to.raw(&ip.octets());
                to.raw(&port.to_le_bytes());
            }
        }
        to.count(self.news.datasets.len());
        for dataset in &self.news.datasets {
            to.u64(dataset.dataset);
            to.u64(dataset.digest);
            to.varint(dataset.versions);
            to.varint(dataset.head);
            to.varint(dataset.pending);
            to.u8(u8::from(dataset.linked));
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        fn short<T: TryFrom<u64>>(
            from: &mut Reader<'_>,
            what: &'static str,
        ) -> Result<T, DecodeError> {
            T::try_from(from.varint(what)?).map_err(|_| DecodeError::Invalid { what })
        }
        let node = NodeId(from.array("node")?);
        let started = u32::from_le_bytes(from.array("process")?);
        let edition = (started, short(from, "edition")?);
        let page = from.u8("page")?;
        if MAX_PAGES <= usize::from(page) {
            return Err(DecodeError::TooLarge { what: "page", limit: MAX_PAGES });
        }
        let (links, sources) = (short(from, "links")?, short(from, "sources")?);
        let rate = from.varint("rate")?;
        let ip: Option<IpAddr> = match from.u8("address")? {
            0 => None,
            4 => Some(from.array::<4>("address")?.into()),
            6 => Some(from.array::<16>("address")?.into()),
            _ => return Err(DecodeError::Invalid { what: "address" }),
        };
        let address = match ip {
            Some(ip) => Some(SocketAddr::new(ip, u16::from_le_bytes(from.array("port")?))),
            None => None,
        };
        let count = from.count(8 + 8 + 3 + 1, PAGE_DATASETS, "datasets")?;
        let mut datasets = Vec::with_capacity(count);
        for _ in 0..count {
            datasets.push(DatasetNews {
                dataset: from.u64("dataset")?,
                digest: from.u64("digest")?,
                versions: from.varint("versions")?,
                head: from.varint("head")?,
                pending: from.varint("pending")?,
                linked: match from.u8("flags")? {
                    0 => false,
                    1 => true,
                    _ => return Err(DecodeError::Invalid { what: "flags" }),
                },
            });
        }
        Ok(Self { node, edition, page, news: News { links, sources, rate, address, datasets } })
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);

    fn news() -> impl Strategy<Value = News> {
        let dataset = any::<(u64, u64, u64, u64, u64, bool)>();
        let dataset = dataset.prop_map(|(dataset, digest, versions, head, pending, linked)| {
            DatasetNews { dataset, digest, versions, head, pending, linked }
        });
        let datasets = prop::collection::vec(dataset, 0..=PAGE_DATASETS);
        let address = any::<Option<([u8; 16], u16)>>();
        let address = address.prop_map(|a| a.map(|(ip, port)| SocketAddr::from((ip, port))));
        (any::<u16>(), any::<u16>(), any::<u64>(), address, datasets).prop_map(
            |(links, sources, rate, address, datasets)| News {
                links,
                sources,
                rate,
                address,
                datasets,
            },
        )
    }

    fn board(own: NodeId, other: NodeId) -> Board {
        let mut board = Board::new(own, 1);
        board.keep([other].into_iter());
        board
    }

    proptest! {
        #[test]
        fn records_come_back(news in news(), edition: Edition, page in 0u8..4) {
            let record = Record { node: A, edition, page, news };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert!((LEAST_RECORD_BYTES..=MAX_RECORD_BYTES).contains(&bytes.len()));
            let mut from = Reader::new(&bytes);
            prop_assert_eq!(Record::decode(&mut from), Ok(record));
            prop_assert!(from.is_empty());
        }

        #[test]
        fn any_bytes_are_news_or_not(bytes: Vec<u8>) {
            board(A, B).receive(&bytes, Instant(0));
        }
    }

    fn many(count: u64) -> News {
        let datasets =
            (0..count).map(|n| DatasetNews { dataset: n, digest: n, ..DatasetNews::default() });
        News { datasets: datasets.collect(), ..News::default() }
    }

    #[test]
    fn news_of_many_datasets_arrive_in_parts_and_old_ones_are_not_taken() {
        let (mut a, mut b) = (board(A, B), board(B, A));
        a.post(many(20), 2, Instant(0));
        let mut first = Vec::new();
        a.fill(&mut first, 2);
        b.receive(&first, Instant(5));
        assert_eq!(b.of(A), Some((Instant(5), &many(20))));
        a.post(many(3), 2, Instant(0));
        let mut second = Vec::new();
        a.fill(&mut second, 2);
        b.receive(&second, Instant(6));
        b.receive(&first, Instant(7));
        assert_eq!(b.of(A), Some((Instant(6), &many(3))));
    }

    #[test]
    fn a_record_is_passed_on_so_many_times_and_a_newer_one_takes_its_place() {
        let mut a = board(A, B);
        a.post(many(1), 2, Instant(0));
        a.post(many(2), 2, Instant(0));
        let mut sent = 0;
        while a.has_something_to_tell() {
            let mut datagram = Vec::new();
            a.fill(&mut datagram, 2);
            let mut from = Reader::new(&datagram);
            assert_eq!(Record::decode(&mut from).map(|record| record.news), Ok(many(2)));
            sent += 1;
        }
        assert_eq!(sent, repeat(2));
    }

    #[test]
    fn what_did_not_change_is_told_again_only_after_a_while() {
        let mut a = board(A, B);
        a.post(many(1), 2, Instant(0));
        a.waiting.clear();
        a.post(News { rate: 9, ..many(1) }, 2, Instant(1_000_000));
        assert!(!a.has_something_to_tell());
        a.post(many(1), 2, Instant(10_000_000));
        assert!(a.has_something_to_tell());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut board = Board::new(A, 1);
        let nodes: Vec<NodeId> = (0..2000u128).map(|n| NodeId((n + 7).to_le_bytes())).collect();
        board.keep(nodes.iter().copied());
        for &node in &nodes {
            let mut bytes = vec![];
            Record { node, edition: (1, 1), page: 0, news: many(1) }.encode(&mut bytes);
            board.receive(&bytes, Instant(0));
        }
        assert_eq!((board.waiting.len(), board.places.len()), (MAX_WAITING, MAX_WAITING));
    }
}
