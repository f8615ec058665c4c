// Package prior has the prior similarities of two responses, from which a
// pcrm.Constraint makes the ceiling of their margin (arXiv 2404.00978, section 3.2).
//
//	LengthRatio    by the lengths of the responses in tokens: needs token ids alone
//	Cosine         by the embeddings of an encoder
//	Lexical        by the n-grams that two texts share
//	RandomUniform  no similarity: the number that a random constraint has in its place
//
// Each has a form for columns, such as [LengthRatios], which takes the layout of Arrow's list
// and string arrays and writes one number a pair. Destinations come first and must not overlap
// any other argument.
//
// Columns are shared out among as many threads as pcrm.SetNumThreads allows, and the kernels are
// those of pcrm.Tier. The number of threads does not change a result.
package prior

import "github.com/pcrm-project/pcrm/pcrm/internal/ids"

// Float is what similarities may be made of.
type Float interface{ float32 | float64 }

// Int is what token ids and the offsets of ragged columns may be made of.
type Int interface{ int | int32 | int64 }

// NoPad is the pad token id to use for responses without padding. No tokenizer has
// negative ids.
const NoPad = ids.NoPad
