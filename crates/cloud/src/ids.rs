//! Ids as clients give them: what is malformed is told from what is not there.

use std::{collections::HashSet, hash::Hash, str::FromStr};

use crate::{Error, error::Noun};

/// An id.
pub(crate) fn parse<Id: FromStr>(given: &str, noun: Noun) -> Result<Id, Error> {
    given.parse().map_err(|_| Error::MalformedId { given: given.chars().take(64).collect(), noun })
}

/// Ids, each once, in the order in which they were given; at least one, and not too many.
pub(crate) fn parse_all<Id: FromStr + Clone + Eq + Hash>(
    given: &[String],
    noun: Noun,
) -> Result<Vec<Id>, Error> {
    if given.is_empty() {
        return Err(Error::Missing(match noun {
            Noun::Instance => "instancesSet",
            Noun::Image => "imageId",
            Noun::Volume => "volumeId",
            Noun::KeyPair | Noun::KeyPairId => "keyName",
            Noun::Resource => "resourceIdSet",
        }));
    }
    if given.len() > IDS_MAX {
        return Err(Error::InvalidValue {
            message: format!("{} ids were given. At most {IDS_MAX} can be.", given.len()),
            hint: None,
        });
    }
    let mut met = HashSet::new();
    let ids = given.iter().map(|id| parse::<Id>(id, noun));
    ids.filter(|id| id.as_ref().map_or(true, |id| met.insert(id.clone()))).collect()
}

/// Ids that one request can name.
const IDS_MAX: usize = 1_000;
