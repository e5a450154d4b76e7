"""Known faults of the published datasets: what is wrong, what a recipe does about it, and who reported it.

`docs/recipes/known_faults.md` is generated from this table by `make docs`.
"""

from collections.abc import Mapping

import attrs


@attrs.frozen
class Report:
    """Where a fault is described.

    Args:
        repository: Repository on GitHub, `owner/name`.
        place: Number of an issue or pull request, or the path of a file.
    """

    repository: str
    place: int | str

    @property
    def address(self) -> str:
        """Address of the page."""
        kind = f"issues/{self.place}" if isinstance(self.place, int) else f"blob/HEAD/{self.place}"
        return f"https://github.com/{self.repository}/{kind}"

    def __str__(self) -> str:
        return f"{self.repository} {'issue ' if isinstance(self.place, int) else ''}{self.place}"


@attrs.frozen
class Fault:
    """A fault of a dataset.

    Args:
        fault: The fault, as a phrase.
        here: What the recipe does about it.
        reports: Where it is described.
        samples: Names of the samples concerned, as in the lists; none if it concerns another file or too many.
        is_named: Whether a run and `prepare` name these samples; not if the recipe removes the fault.
    """

    fault: str
    here: str
    reports: tuple[Report, ...]
    samples: tuple[str, ...] = ()
    is_named: bool = True


@attrs.frozen
class Record:
    """What is known about one dataset.

    Args:
        trackers: Repositories whose issues were searched.
        faults: The faults that were found there.
        renamed: Right names of samples, by the name that a faulty copy has.
    """

    trackers: tuple[str, ...]
    faults: tuple[Fault, ...] = ()
    renamed: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def samples(self) -> dict[str, str]:
        """Fault of each sample that runs name."""
        return {name: each.fault for each in self.faults if each.is_named for name in each.samples}


CREMAD, PENG = "CheyneyComputerScience/CREMA-D", "GeWu-Lab/OGM-GE_CVPR2022"
KINETICS = "cvdfoundation/kinetics-dataset"
VGGSOUND, SPARSE_SYNC = "hche11/VGGSound", "v-iashin/SparseSync"
AVE, FAN = "YapengTian/AVE-ECCV18", "fanyunfeng-bit/Modal-Imbalance-PMR"
TWO_STREAMS = "feichtenhofer/twostreamfusion"
SDK, LMF = "A2Zadeh/CMU-MultimodalSDK", "Justin1904/Low-rank-Multimodal-Fusion"
BERT_MULT, MULTIBENCH = "WasifurRahman/BERT_multimodal_transformer", "pliang279/MultiBench"
MFAS = "jperezrua/mfas"
FOOD = "artelab/Image-and-Text-fusion-for-UPMC-Food-101-using-BERT-and-CNNs"

KEPT = "kept and named; `--skip-bad` leaves it out if it cannot be read"
COUNTED = "absent clips are counted, named in `skipped.txt` and left out"

KNOWN_FAULTS: Mapping[str, Record] = {
    "av_mnist": Record(
        trackers=(MFAS, MULTIBENCH, "deep-real/SMIL"),
        faults=(
            Fault(
                "the copies that can be downloaded are not the data of the papers: a network on pictures alone reaches "
                "53 to 66 %, where 75 % are published, and one on sound 43 %, not 66 %",
                "nothing: the files look the same; compare with numbers from the same copy alone",
                (Report(MFAS, 13), Report(MFAS, 17)),
            ),
        ),
    ),
    "ave": Record(
        trackers=(AVE, "jasongief/PSP_CVPR_2021", FAN, PENG),
        faults=(
            Fault(
                "4,097 videos for 4,143 annotations: some videos have two events",
                "each video is read once in each list, as what is listed first",
                (Report(AVE, 11), Report(AVE, 14), Report(AVE, 32)),
            ),
            Fault(
                "18 videos of trainSet.txt are in valSet.txt (10) or testSet.txt (8) too, as another event",
                "left out of training, unless `--overlap` is given",
                (Report(FAN, "data/AVE/trainSet.txt"),),
            ),
            Fault(
                "its event lasts from second 0 to 0",
                "counts as one second",
                (Report(AVE, "data/Annotations.txt"),),
                ("VWi2ENBuTbw",),
            ),
            Fault(
                "two instruments play, and one is annotated: a video has the one event of its AudioSet class",
                "nothing: the label is read as it is",
                (Report(AVE, 12),),
                ("-PE8geTWt-g",),
                is_named=False,
            ),
            Fault(
                "rows 171 and 2189 of the hdf5 files have two events, and one in testSet.txt",
                "`events` reads the hdf5 files, the classification of clips the lists",
                (Report(AVE, 10),),
            ),
        ),
    ),
    "brats": Record(
        trackers=("iolag/UPD_study", "mobaidoctor/med-ddpm", "MIC-DKFZ/nnUNet", "ellisdg/3DUnetCNN"),
        faults=(
            Fault(
                "BraTS 2020: the segmentation of this case has the name `W39_1998.09.19_Segm.nii`",
                "it is found",
                (Report("iolag/UPD_study", 3),),
                ("BraTS20_Training_355",),
                is_named=False,
            ),
        ),
    ),
    "ch_sims": Record(
        trackers=("thuiar/MMSA", "thuiar/Self-MM"),
        faults=(
            Fault(
                "files of the published extraction script have lists for arrays, and no labels of each modality",
                "they are read; the start of a run says that these labels are absent",
                (Report("thuiar/Self-MM", 8), Report("thuiar/Self-MM", 18)),
            ),
        ),
    ),
    "cmu_mosei": Record(
        trackers=(SDK, MULTIBENCH, BERT_MULT, "thuiar/MMSA"),
        faults=(
            Fault(
                "features of sound and pictures hold values that are not finite",
                "they become 0 and are counted",
                (Report(BERT_MULT, 10),),
            ),
            Fault(
                "an early packed file has labels above 3, up to 5: four annotations were counted as three",
                "a label outside of -3 to 3 is an error that names it",
                (Report(SDK, 101),),
            ),
            Fault(
                "22,777 segments in the packed files, and 23,453 in the paper",
                "nothing: the segments of the file count",
                (Report(MULTIBENCH, 36),),
            ),
            Fault(
                "in early releases some 200 segments have COVAREP features of another size, 43 in place of 74",
                "nothing: a packed file holds one size",
                (Report(SDK, 12), Report(SDK, 29)),
            ),
            Fault(
                "2,882 segmented mp4 files of the raw download cannot be read",
                "raw videos are not read",
                (Report(SDK, 165),),
            ),
        ),
    ),
    "cmu_mosi": Record(
        trackers=(SDK, LMF, BERT_MULT, "thuiar/MMSA"),
        faults=(
            Fault(
                "COVAREP features of -infinity; the authors of the corpus replaced them by 0",
                "they become 0 and are counted",
                (Report(SDK, 179), Report(LMF, 6), Report(LMF, 8)),
            ),
            Fault(
                "segments that are labelled twice: `d6hH302o4v8` from 94.4 s, `bOL9jKpeJRs` from 88.2 s; others "
                "overlap (`ZUXBRvtny7o`)",
                "nothing: each counts as it is listed",
                (Report(SDK, 265),),
            ),
            Fault(
                "`2WGyTLYerpo[43]` has no label: the authors removed some segments",
                "nothing: it is in none of the parts",
                (Report(SDK, 94),),
            ),
            Fault(
                "the segmented wav files of the raw download do not last as long as their intervals",
                "raw sound is not read",
                (Report(SDK, 255),),
            ),
            Fault(
                "`mosi.pkl` behind one published link has four fields: another file than elsewhere under that name",
                "named as a file of another form",
                (Report(BERT_MULT, 12),),
            ),
        ),
    ),
    "cremad": Record(
        trackers=(CREMAD, PENG, "GeWu-Lab/Diagnosing_Relearning_ECCV2024", "GeWu-Lab/MMPareto_ICML2024"),
        renamed={"1040_ITH_SAD_X": "1040_ITH_SAD_XX"},
        faults=(
            Fault(
                "clones before 18 October 2022 have `1040_ITH_SAD_X.wav` for `1040_ITH_SAD_XX.flv`",
                "both names are the same clip",
                (Report(CREMAD, 6),),
            ),
            Fault(
                "video very short and without sound; its wav file is right",
                KEPT,
                (Report(CREMAD, "README.md"),),
                ("1076_MTI_NEU_XX",),
            ),
            Fault(
                "video of an error picture, very short; no sound in the wav file either",
                KEPT,
                (Report(CREMAD, "README.md"),),
                ("1076_MTI_SAD_XX",),
            ),
            Fault(
                "video without duration",
                KEPT,
                (Report(CREMAD, "README.md"),),
                ("1064_TIE_SAD_XX",),
            ),
            Fault(
                "video of one minute, with all emotions of that sentence",
                KEPT,
                (Report(CREMAD, "README.md"),),
                ("1064_IEO_DIS_MD",),
            ),
            Fault(
                "videos without sound in clones before 16 December 2020",
                "sound is read from `AudioWAV`; `prepare` needs that of the video only where the wav file is absent",
                (Report(CREMAD, "README.md"),),
                (
                    *("1005_IWW_DIS_XX", "1007_IWL_HAP_XX", "1037_DFA_ANG_XX", "1037_WSI_DIS_XX", "1037_WSI_FEA_XX"),
                    *("1037_WSI_SAD_XX", "1039_IWL_SAD_XX", "1039_WSI_SAD_XX", "1045_ITS_HAP_XX", "1045_WSI_DIS_XX"),
                    *("1046_TIE_HAP_XX", "1058_IEO_SAD_HI", "1061_TIE_ANG_XX", "1063_IEO_DIS_HI", "1067_IEO_FEA_LO"),
                    *("1068_IEO_SAD_MD", "1070_IWL_SAD_XX", "1071_WSI_ANG_XX", "1072_WSI_ANG_XX", "1073_MTI_SAD_XX"),
                    *("1075_IWW_DIS_XX", "1075_WSI_DIS_XX", "1076_ITH_HAP_XX", "1076_ITH_NEU_XX", "1076_TAI_NEU_XX"),
                    *("1079_IWL_ANG_XX", "1079_TAI_DIS_XX", "1091_IWW_FEA_XX"),
                ),
                is_named=False,
            ),
            Fault(
                "mp3 files without sound or length, nearly the same clips as those videos",
                "mp3 files are not read",
                (Report(CREMAD, 13),),
            ),
            Fault(
                "git-lfs pointers in place of media, in zip downloads and in clones without git-lfs",
                "counted apart, with the remedy; `prepare` stops where most are",
                (Report(CREMAD, 3), Report(CREMAD, 6), Report(CREMAD, 10)),
            ),
        ),
    ),
    "food101": Record(
        trackers=(FOOD, "YiLunLee/missing_aware_prompts", "songrise/MoPE", "Vincent-ZHQ/UniS-MMC", "zrguo/CGGM"),
        faults=(
            Fault(
                "`train_titles.csv`: the title of `breakfast_burrito_730.jpg` has no closing quote, which swallows the "
                "rows up to the next one; these name `.txt` files in place of pictures",
                "such a row is one line, and a `.txt` file stands for the picture of its name; both are counted",
                (Report(FOOD, 2),),
                ("breakfast_burrito_730",),
                is_named=False,
            ),
            Fault(
                "90,688 samples in the copies that can be downloaded, 90,840 in the paper",
                "nothing: the samples of the lists count",
                (Report("songrise/MoPE", 2),),
            ),
        ),
    ),
    "iemocap": Record(trackers=("AIM3-RUC/MMIN", "ZhuoYulang/IF-MMIN", "ZhuoYulang/CIF-MMIN", SDK)),
    "kinetics_sounds": Record(
        trackers=(KINETICS, PENG, "IBM/AdaMML", "pritamqu/CrissCross", "shicaiwei123/ICCV2025-ARL"),
        faults=(
            Fault(
                "some 1,400 training videos of the CVDF copy of Kinetics-400 end before their index (`moov atom not "
                "found`); an archive replaces most of them",
                "`prepare` takes `replacement/replacement_for_corrupted_k400/NAME.mp4` in their place, and lists those "
                "that remain",
                (Report(KINETICS, 3), Report(KINETICS, "README.md")),
            ),
            Fault(
                "videos of the annotations that no copy has: 5,277 for training, 26 for validation",
                COUNTED,
                (Report(KINETICS, 28), Report(KINETICS, 51)),
            ),
            Fault(
                "lists of 31, 32 or 33 of the 34 classes of the first paper",
                "the 31 classes of the lists of Peng et al.; folders of others are left out and named",
                (
                    Report("IBM/AdaMML", 3),
                    Report("pritamqu/CrissCross", 4),
                    Report("shicaiwei123/ECCV2024-DMRNet", 3),
                ),
            ),
            Fault(
                "the published copy of Wei et al. has its test part as `val` for pictures and as `test` for sound",
                "both are read as the test part",
                (Report("shicaiwei123/ICCV2025-ARL", 2),),
            ),
            Fault(
                "`my_train.txt` and `my_test.txt` have other columns than the loader beside them expects",
                "columns are told by their content",
                (Report(PENG, "dataset/dataset.py"), Report(PENG, "data/KineticSound/my_train.txt")),
            ),
        ),
    ),
    "ucf101": Record(
        trackers=(TWO_STREAMS, "jeffreyyihuang/two-stream-action-recognition", "HHTseng/video-classification"),
        faults=(
            Fault(
                "`HandStandPushups` in the lists is `HandstandPushups` in the frames",
                "upper and lower case do not matter",
                (Report("mbiparva/spatiotemporal-multiplier-networks-pytorch", 2),),
            ),
            Fault(
                "the archive of the flow has three parts; the first alone unpacks to `u/` without `v/`",
                "an error names the folder that is absent",
                (Report("jeffreyyihuang/two-stream-action-recognition", 36),),
            ),
            Fault(
                "`u/` of some downloads holds `.bin` files",
                "only jpg files count: such clips are named as clips without flow",
                (Report(TWO_STREAMS, 54),),
            ),
            Fault(
                "a download whose parts do not fit ends in wrong checksums, such as that of "
                "`v_TrampolineJumping_g09_c05/frame000020.jpg`",
                "`--skip-bad` finds damaged pictures",
                (Report(TWO_STREAMS, 56),),
            ),
            Fault(
                "one copy has a folder `TSP_flows` among the frames of `v_LongJump_g18_c03`",
                "only jpg files count",
                (Report(TWO_STREAMS, 64),),
            ),
        ),
    ),
    "ur_funny": Record(
        trackers=("ROC-HCI/UR-FUNNY", MULTIBENCH),
        faults=(
            Fault(
                "`urfunny2_videos.zip` holds 10,166 videos, and the labels of the first version 16,606",
                "raw videos are not read",
                (Report("ROC-HCI/UR-FUNNY", 7),),
            ),
        ),
    ),
    "vggsound": Record(
        trackers=(VGGSOUND, PENG, SPARSE_SYNC, "Bizilizi/VGGSounder", "hkchengrex/MMAudio"),
        faults=(
            Fault(
                "listed as broken by the SparseSync authors",
                KEPT,
                (Report(SPARSE_SYNC, "data/filtered_examples_vggsound/filtered_broken.txt"),),
                (
                    *("G1x66WZKZKQ_215", "JxPkDMJ2QQ8_16", "flo7v8rfXWA_111", "dlj9hv18to0_49", "VLFw1O_c-ck_33"),
                    *("tb6URXljepc_194", "sVHzPXGdnyI_0", "Lp4VlV1iebo_8", "NucyWgxj364_5", "jjbpboFhhm8_0"),
                    *("wL4MvSEl2CU_0", "iSHkksGKNpw_40", "TipVfZMxZbk_10", "20sstRN_pmI_170", "YxuqpHYDU2U_142"),
                    "RQRipbhO86I_40",
                ),
            ),
            Fault(
                "1,010 clips without any sound, 701 shorter than 9 s, thousands with still pictures in part",
                "nothing: they are read as they are; short sound is repeated to 10 s",
                (
                    Report(VGGSOUND, 6),
                    Report(VGGSOUND, 16),
                    Report(SPARSE_SYNC, "data/filtered_examples_vggsound/filtered_audio_has_0_std.txt"),
                    Report(SPARSE_SYNC, "data/filtered_examples_vggsound/less_than_9s_frames_segments.txt"),
                ),
            ),
            Fault(
                "`vggsound.csv` has 199,467 rows (183,971 and 15,496), `train.csv` and `test.csv` beside it 199,176 "
                "(183,730 and 15,446); the archive of the authors has the latter",
                "absent clips are counted; of a clip with two labels the first counts, and one of both parts is left "
                "out of training, which the start of a run says; more than 0.5 % of such rows are an error",
                (Report(VGGSOUND, 19),),
            ),
            Fault(
                "a fifth of the videos is no longer on YouTube",
                COUNTED,
                (Report(VGGSOUND, 12),),
            ),
            Fault(
                "part 08 of the archive in `Loie/VGGSound` is damaged: 197,957 clips remain",
                COUNTED,
                (Report(VGGSOUND, 21),),
            ),
            Fault(
                "clips of one video are in both parts, such as those of `sKtU5y4czNc`",
                "nothing: they are clips of different seconds",
                (Report(SPARSE_SYNC, "data/vggsound_train.txt"), Report(VGGSOUND, "data/test.csv")),
            ),
            Fault(
                "some videos are on YouTube under several ids, in the training and in the test part",
                "nothing: their ids differ",
                (Report("hkchengrex/MMAudio", 50),),
            ),
        ),
    ),
}
