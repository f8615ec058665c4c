// Package tier selects the implementation of the kernels: plain Go or SIMD assembly.
package tier

import (
	"log"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// A Tier is an implementation of the kernels. All tiers of a kernel share a signature and a
// documented loop, so each can be tested against the scalar tier.
type Tier int32

const (
	Scalar Tier = iota
	AVX2        // AVX2 and FMA
	AVX512      // AVX-512 F and DQ
)

var names = []string{"scalar", "avx2", "avx512"}

func (t Tier) String() string { return names[t] }

var current atomic.Int32

func init() {
	current.Store(int32(Best()))
	// An unknown name must not stop a program that only imports a package. It must not go
	// unnoticed either: a test of one tier would then run another.
	if name := os.Getenv("PCRM_TIER"); name != "" {
		if err := Set(name); err != nil {
			log.Printf("pcrm: ignoring PCRM_TIER, using the %s kernels: %v", Current(), err)
		}
	}
}

// Current returns the tier in use.
func Current() Tier { return Tier(current.Load()) }

// Set selects a tier by its name, or the best tier with "auto".
func Set(name string) error {
	available := names[:Best()+1]
	t := slices.Index(available, name)
	if name == "auto" {
		t = int(Best())
	}
	if t < 0 {
		return argument.Errorf("tier", -1, "must be auto or, on this machine, one of %s, got %q", strings.Join(available, ", "), name)
	}
	current.Store(int32(t))
	return nil
}
