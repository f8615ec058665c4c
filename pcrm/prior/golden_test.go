package prior_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm/prior"
)

// golden holds the cases for priors in tests/golden, which mpmath computed with 60 digits.
type golden struct {
	Cases struct {
		LengthRatio []struct {
			ChosenIDs   []int64 `json:"chosen_ids"`
			RejectedIDs []int64 `json:"rejected_ids"`
			Ratio       float64
		} `json:"length_ratio"`
		Span []struct {
			ChosenIDs   []int64 `json:"chosen_ids"`
			RejectedIDs []int64 `json:"rejected_ids"`
			PadTokenID  int64   `json:"pad_token_id"`
		}
		Cosine []struct {
			A, B            []float64
			Cosine, Angular float64
		}
	}
}

func readGolden(t testing.TB) golden {
	data, err := os.ReadFile("../../tests/golden/vectors.json")
	require.NoError(t, err)
	var g golden
	require.NoError(t, json.Unmarshal(data, &g))
	return g
}

func TestGoldenLengthRatio(t *testing.T) {
	g := readGolden(t)
	require.NotEmpty(t, g.Cases.LengthRatio)
	for i, c := range g.Cases.LengthRatio {
		assert.Equal(t, c.Ratio, prior.LengthRatio(c.ChosenIDs, c.RejectedIDs, prior.NoPad), "case %d", i)
	}
	// The span cases have the same responses in padded rows. The ratio must not change.
	for i, c := range g.Cases.Span {
		assert.Equal(t, g.Cases.LengthRatio[i].Ratio, prior.LengthRatio(c.ChosenIDs, c.RejectedIDs, c.PadTokenID), "padded case %d", i)
	}
}
