"""Weigh: how much each view of a point cloud counts, searched on the shots where that is asked for."""

import dataclasses
from typing import ClassVar

from calipso_export.choices import SEARCH
from calipso_export.config import ExportConfig
from calipso_export.fewshot.store import FeatureStore
from calipso_export.fewshot.view_weights import encode_views, search_view_weights
from calipso_export.front_ends.points import PointsFrontEnd
from calipso_export.models import LoadedModel
from calipso_export.photos import Photos
from calipso_export.progress import Progress
from calipso_export.step import Made
from calipso_export.steps.prompt import TextFeatures
from calipso_runtime.caching import cache_folder


class WeighViews:
    """Give the model a front end with the weights that were found."""

    requires: ClassVar[tuple[type, ...]] = (ExportConfig, LoadedModel, TextFeatures, Photos)
    ensures: ClassVar[tuple[type, ...]] = (LoadedModel,)

    def run(self, made: Made, progress: Progress) -> None:
        """See `Step.run`."""
        config, model, photos = made[ExportConfig], made[LoadedModel], made[Photos].photos
        front_end = model.front_end
        if config.view_weights != SEARCH or not isinstance(front_end, PointsFrontEnd):
            return
        with FeatureStore(config.feature_cache or cache_folder()) as store:
            features = encode_views(model, photos, store=store, progress=progress)
        weights, chosen = search_view_weights(features, photos, made[TextFeatures].values, with_cache=config.cache)
        found = PointsFrontEnd(
            points=front_end.points, views=front_end.views, size=front_end.size, weights=weights, chosen=chosen
        )
        made.add(dataclasses.replace(model, front_end=found))
