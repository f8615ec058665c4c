// Package prior computes prior similarities of two responses. A pcrm.Constraint turns a
// similarity into the ceiling of the pair's margin (arXiv 2404.00978, section 3.2).
//
//	LengthRatio    ratio of the lengths in tokens; needs only token ids
//	Cosine         cosine of the embeddings of an encoder
//	Lexical        overlap of the texts' n-grams
//	RandomUniform  not a similarity, but the number that a random constraint uses instead
//
// Each has a form for columns, such as [LengthRatios], which reads the layout of Arrow's list
// and string arrays and writes one number per pair. Destinations come first and must not overlap
// any other argument.
//
// Columns are divided among as many threads as pcrm.SetNumThreads allows. The number of threads
// does not change the results. pcrm.Tier selects the kernels.
package prior

import "github.com/pcrm-project/pcrm/pcrm/internal/ids"

// Float is the type constraint of similarities.
type Float interface{ float32 | float64 }

// Int is the type constraint of token ids and of the offsets of ragged columns.
type Int interface{ int | int32 | int64 }

// NoPad is the pad token id to use for responses without padding. No tokenizer has
// negative ids.
const NoPad = ids.NoPad
