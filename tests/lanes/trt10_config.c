/*
 * Lets the TensorRT 10.16 bindings use TensorRT-RTX 1.4's IBuilderConfig.
 *
 * A C++ object of this API is a public object whose second word points to the implementation, whose
 * first word points to its table of virtual functions; callers pick those by position. RTX 1.4 left
 * out what it has no use for (calibrators, algorithm selectors, quantization flags), so from there
 * on every position differs from what the 10.16 bindings call, and a call lands in another function.
 * The other objects that a build needs agree in all positions that matter.
 *
 * This library stands in as libnvinfer.so.10: it returns each new IBuilderConfig with a table in
 * 10.16's order. What RTX has is passed on; what it does not have is kept here, and so are the precision
 * flags, which RTX 1.4 refuses: they read back as they were set, and the plan is built as the graph
 * says. x86-64, GCC or Clang; positions recorded from 10.16.1.11 and 1.4.0.76.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*function)(void);

/* The forwarding code below relies on `real` being the second word. */
struct config {
    function const *table;
    function **real;
    uint32_t precision_flags;
    uint32_t quantization_flags;
    void *calibrator;
    void const *calibration_profile;
    void *algorithm_selector;
};

struct object { /* the public face of every object */
    void *table;
    void *implementation;
};

/* FP16 0, INT8 1, OBEY 9, PREFER 10, FP8 15, BF16 17, INT4 22, FP4 26 */
#define PRECISION_FLAGS ((1u << 0) | (1u << 1) | (1u << 9) | (1u << 10) | (1u << 15) | (1u << 17) \
                         | (1u << 22) | (1u << 26))

enum { SET_FLAGS = 6, GET_FLAGS, CLEAR_FLAG, SET_FLAG, GET_FLAG, RESET = 20 }; /* RTX's positions */
enum { CREATE_CONFIG = 7, BUILD = 14, IS_SUPPORTED = 15, BUILDER_FUNCTIONS = 64 }; /* in both */

#define REAL(config, position, type) ((type)((config)->real[0][position]))

static void set_flags(struct config *c, uint32_t flags)
{
    c->precision_flags = flags & PRECISION_FLAGS;
    REAL(c, SET_FLAGS, void (*)(void *, uint32_t))(c->real, flags & ~PRECISION_FLAGS);
}

static uint32_t get_flags(struct config *c)
{
    return REAL(c, GET_FLAGS, uint32_t (*)(void *))(c->real) | c->precision_flags;
}

static void clear_flag(struct config *c, int32_t flag)
{
    if (PRECISION_FLAGS >> flag & 1)
        c->precision_flags &= ~(1u << flag);
    else
        REAL(c, CLEAR_FLAG, void (*)(void *, int32_t))(c->real, flag);
}

static void set_flag(struct config *c, int32_t flag)
{
    if (PRECISION_FLAGS >> flag & 1)
        c->precision_flags |= 1u << flag;
    else
        REAL(c, SET_FLAG, void (*)(void *, int32_t))(c->real, flag);
}

static bool get_flag(struct config *c, int32_t flag)
{
    if (PRECISION_FLAGS >> flag & 1)
        return c->precision_flags >> flag & 1;
    return REAL(c, GET_FLAG, bool (*)(void *, int32_t))(c->real, flag);
}

static void reset(struct config *c)
{
    c->precision_flags = c->quantization_flags = 0;
    c->calibrator = c->algorithm_selector = NULL;
    c->calibration_profile = NULL;
    REAL(c, RESET, void (*)(void *))(c->real);
}

static void set_calibrator(struct config *c, void *calibrator) { c->calibrator = calibrator; }
static void *get_calibrator(struct config *c) { return c->calibrator; }
static void set_selector(struct config *c, void *selector) { c->algorithm_selector = selector; }
static void *get_selector(struct config *c) { return c->algorithm_selector; }
static bool set_profile(struct config *c, void const *p) { c->calibration_profile = p; return true; }
static void const *get_profile(struct config *c) { return c->calibration_profile; }
static void set_quantization(struct config *c, uint32_t flags) { c->quantization_flags = flags; }
static uint32_t get_quantization(struct config *c) { return c->quantization_flags; }
static void clear_one(struct config *c, int32_t flag) { c->quantization_flags &= ~(1u << flag); }
static void set_one(struct config *c, int32_t flag) { c->quantization_flags |= 1u << flag; }
static bool get_one(struct config *c, int32_t flag) { return c->quantization_flags >> flag & 1; }
static bool set_tuning(struct config *c, char const *text) { (void)c, (void)text; return false; }
static char const *get_tuning(struct config *c) { (void)c; return ""; }

/* real_N calls the function at RTX's position N with the same arguments, on the real object. */
#define FORWARD(position)                                                                        \
    void real_##position(void);                                                                  \
    __asm__(".text\n.hidden real_" #position "\n.type real_" #position ", @function\n"           \
            "real_" #position ":\n"                                                              \
            "  movq 8(%rdi), %rdi\n"                                                             \
            "  movq (%rdi), %rax\n"                                                              \
            "  jmp *(8*" #position ")(%rax)\n");
#define TEN(X, t) X(t##0) X(t##1) X(t##2) X(t##3) X(t##4) X(t##5) X(t##6) X(t##7) X(t##8) X(t##9)
TEN(FORWARD, ) TEN(FORWARD, 1) TEN(FORWARD, 2) TEN(FORWARD, 3) TEN(FORWARD, 4)
FORWARD(50) FORWARD(51) FORWARD(52) FORWARD(53) FORWARD(54)

#define OURS(name) ((function)(name))

static function const CONFIG_TABLE[] = { /* in the order of TensorRT 10.16 */
    real_0, real_1, real_2, real_3, real_4, real_5,
    OURS(set_calibrator), OURS(get_calibrator),                                     /*  6 */
    OURS(set_flags), OURS(get_flags), OURS(clear_flag), OURS(set_flag), OURS(get_flag), /* 8 */
    real_11, real_12, real_13, real_14, real_15, real_16, real_17, real_18, real_19, /* 13 */
    OURS(reset),                                                                    /* 22 */
    real_21, real_22, real_23, real_24, real_25, real_26,                           /* 23 */
    OURS(set_selector), OURS(get_selector),                                         /* 29 */
    OURS(set_profile), OURS(get_profile),                                           /* 31 */
    OURS(set_quantization), OURS(get_quantization),                                 /* 33 */
    OURS(clear_one), OURS(set_one), OURS(get_one),                                  /* 35 */
    real_27, real_28, real_29, real_30, real_31, real_32, real_33, real_34, real_35, /* 38 */
    real_36, real_37, real_38, real_39, real_40, real_41, real_42, real_43, real_44, /* 47 */
    real_45, real_46, real_47, real_48, real_49, real_50, real_51, real_52, real_53, /* 56 */
    real_54,                                                                        /* 65 */
    OURS(set_tuning), OURS(get_tuning),                                             /* 66 */
};

/*
 * Builders agree in all positions, so a copy of their table serves, with three entries replaced.
 * While a builder works on a config it gets RTX's own implementation back, for RTX reads it by the
 * same public functions, in its own order.
 */
static function builder_table[2 + BUILDER_FUNCTIONS]; /* two words of type information precede it */
static function original[BUILDER_FUNCTIONS];

static struct object *create_config(void *builder)
{
    struct object *config = ((struct object *(*)(void *))original[CREATE_CONFIG])(builder);
    struct config *wrapped = config ? calloc(1, sizeof *wrapped) : NULL;
    if (wrapped != NULL) { /* never freed: one small block for each config a test makes */
        wrapped->table = CONFIG_TABLE;
        wrapped->real = config->implementation;
        config->implementation = wrapped;
    }
    return config;
}

static void *with_real_config(int position, void *builder, void *network, struct object *config)
{
    struct config *wrapped = config->implementation;
    config->implementation = wrapped->real;
    void *result = ((void *(*)(void *, void *, void *))original[position])(builder, network, config);
    config->implementation = wrapped;
    return result;
}

static void *build(void *builder, void *network, struct object *config)
{
    return with_real_config(BUILD, builder, network, config);
}

static bool is_supported(void *builder, void *network, struct object *config)
{
    return (uintptr_t)with_real_config(IS_SUPPORTED, builder, network, config) & 1;
}

static void *library(void)
{
    char path[4096];
    Dl_info here;
    if (dladdr((void *)CONFIG_TABLE, &here) == 0)
        return NULL;
    snprintf(path, sizeof path - 32, "%s", here.dli_fname);
    strcat(dirname(path), "/libtensorrt_rtx.so.1");
    return dlopen(path, RTLD_LAZY);
}

struct object *createInferBuilder_INTERNAL(void *logger, int32_t version)
{
    void *rtx = library();
    struct object *(*create)(void *, int32_t);
    *(void **)&create = rtx ? dlsym(rtx, "createInferBuilder_INTERNAL") : NULL;
    struct object *builder = create ? create(logger, version) : NULL;
    if (builder != NULL) {
        function **implementation = builder->implementation;
        if (original[BUILD] == NULL) {
            memcpy(builder_table, *implementation - 2, sizeof builder_table);
            memcpy(original, builder_table + 2, sizeof original);
            builder_table[2 + CREATE_CONFIG] = OURS(create_config);
            builder_table[2 + BUILD] = OURS(build);
            builder_table[2 + IS_SUPPORTED] = OURS(is_supported);
        }
        *implementation = builder_table + 2;
    }
    return builder;
}
